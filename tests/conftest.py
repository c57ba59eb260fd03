"""The environment of every test: 8 virtual CPU devices, no network, caches of their own."""

import copy
import importlib.util
import os
import shutil
import string
import tempfile
from pathlib import Path

import numpy as np
import pytest

# All of this must be in the environment before jax, transformers or datasets are imported, and the
# processes that tests start inherit it.
_CACHE = tempfile.mkdtemp(prefix="jaxllm-tests-")
# What a test compiles another may need again, in another process of pytest, too.
_COMPILED = os.environ.setdefault("JAXLLM_TESTS_COMPILED", f"{_CACHE}/compiled")
_DEVICES = "--xla_force_host_platform_device_count=8"
# Tests spend most of their time in the compiler. Without LLVM's optimisations, with the emitters
# that XLA had before those of MLIR, a gradient of a tiny BERT compiles in 0.8 s instead of 2.8.
# .ci/run compares with PyTorch by the emitters that users have.
_QUICK = "--xla_backend_optimization_level=0"
_QUICKER = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
# A collective whose threads do not all arrive within a minute ends the process (SIGABRT, jax 0.10
# and 0.11): on a busy machine 8 devices on few cores may take as long.
_PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=1800"
_FLAGS = [_DEVICES, _QUICK, _PATIENT, os.environ.get("XLA_FLAGS", "")]
if os.environ.get("JAXLLM_TESTS_EMITTERS") != "new":
    _FLAGS.insert(0, _QUICKER)
os.environ["XLA_FLAGS"] = " ".join(_FLAGS).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XDG_CACHE_HOME"] = _CACHE
os.environ["HF_HOME"] = f"{_CACHE}/huggingface"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLCONFIGDIR"] = f"{_CACHE}/matplotlib"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax  # noqa: E402

import jaxllm  # noqa: E402, F401  (its CPU guard completes XLA_FLAGS)

jax.config.update("jax_compilation_cache_dir", _COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_compilation_cache_max_size", 4 * 2**30)  # with a limit it locks its files

PARITY = Path(__file__).parent / "parity"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (
    "the a an and or but not no of to in on at it is was are were be this that with for as i "
    "you he she we they my his her very so too good bad great poor fine well film movie book story "
    "phone product review acting plot music love hate like liked loved hated bought works broke "
    "never always really just one two have had has do did does would will can could what "
    "when who all more most than then there here time"
)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


class _NeedsTorch(pytest.Module):
    """A file of tests/parity where torch is not installed: it cannot even be imported."""

    def collect(self):
        pytest.skip("needs torch: pip install -e '.[parity]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector):
    if PARITY in module_path.parents and importlib.util.find_spec("torch") is None:
        return _NeedsTorch.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU: JAX_PLATFORMS=cuda pytest -m gpu -n 0")
    for item in items:
        if PARITY in item.path.parents:
            item.add_marker(pytest.mark.parity)
        if item.get_closest_marker("gpu") and "cuda" not in os.environ["JAX_PLATFORMS"]:
            item.add_marker(no_gpu)


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts have one device, as outside of tests, and compile quickly: for
    what they do, where the numbers are compared elsewhere.
    """
    monkeypatch.setenv("XLA_FLAGS", f"{_QUICK} {_QUICKER}")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, fresh for each test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_bert_config():
    """A transformers BertConfig of two layers; copy it before changing it."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


@pytest.fixture(scope="session")
def tiny_modernbert_config():
    """A transformers ModernBertConfig whose window (3 to either side) is shorter than most rows."""
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        local_attention=6,
        embedding_dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.1,
        classifier_dropout=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an uncased WordPiece vocab.txt (specials first, then characters and words).

    Every lower-case ASCII text can be spelled with it; there are more than 99 entries, so a model
    beside it needs ``vocab_size`` of the number of its lines.
    """
    directory = tmp_path_factory.mktemp("tokenizer")
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{c}" for c in characters), *string.punctuation]
    vocabulary = [*SPECIALS, *pieces, *(w for w in WORDS.split() if len(w) > 1)]
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def tiny_bert_dir(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """A saved BERT without a head, random, and its tokenizer. Starting from it is quicker than from
    random weights, whose initialisers have to be compiled.
    """
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.models import module_parts
    from jaxllm.pretrained import hf
    from jaxllm.trees import map_params

    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = copy.copy(tiny_bert_config)
    config.vocab_size = len(tokenizer)
    rng = np.random.default_rng(0)
    _, abstract = module_parts(config, "base")
    params = map_params(lambda path, x: 0.2 * rng.standard_normal(x.shape, np.float32), abstract)
    directory = tmp_path_factory.mktemp("tiny_bert") / "model"
    hf.save_pretrained(directory, params, config, "base", tokenizer=tokenizer)
    return directory
