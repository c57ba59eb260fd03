"""The files in which sentence-transformers keeps how a model's vectors are made, in and out.

What changes a vector there is applied here, or refused by name.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import InputError
from jaxllm.files import read_json, write_json
from jaxllm.nn.pooling import ACTIVATIONS, DenseLayer, Pooling
from jaxllm.pretrained import saving
from jaxllm.pretrained.formats import read_tensors
from jaxllm.pretrained.json_object import JsonObject

MODULES, OPTIONS, CONFIG = "modules.json", "config_sentence_transformers.json", "config.json"
TEXT_FILE, POOLING_DIRECTORY = "sentence_bert_config.json", "1_Pooling"
# Older versions named the file by the model's family.
_FAMILIES = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
TEXT_FILES = (TEXT_FILE, *(f"sentence_{family}_config.json" for family in _FAMILIES))
_PACKAGE = "sentence_transformers"
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
# Modes of pooling, and the flags that they were before version 6.
MODES = {
    "mean": "mean_tokens",
    "cls": "cls_token",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
_FLAG = "pooling_mode_"
# Arguments with which a model is loaded there, that change no vector or its last digits.
_LOADING = {"add_pooling_layer", "attn_implementation", "dtype", "torch_dtype"}
_ACTIVATION = "torch.nn.modules.activation.Tanh"  # of a Dense that does not say


@dataclass(frozen=True)
class Settings:
    """What is done to a text before it becomes tokens, and what the files say besides.

    lower_case: it is lower-cased, whatever the tokenizer does.
    prompts: texts to begin with, by name. default_prompt_name: of the one that is used.
    include_prompt: whether the tokens of the prompt are pooled with the others.
    max_length: tokens at most; None = the files do not say.
    similarity: the function that the vectors are meant for.
    """

    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    max_length: int | None = None
    similarity: str | None = None

    @property
    def prompt(self) -> str:
        """What every text begins with."""
        return "" if self.default_prompt_name is None else self.prompts[self.default_prompt_name]

    def prepared(self, tokenizer: Any) -> Any:
        """The tokenizer, or a copy of it that lower-cases."""
        if not self.lower_case:
            return tokenizer
        from tokenizers.normalizers import Lowercase, Sequence

        tokenizer = copy.deepcopy(tokenizer)
        backend = tokenizer.backend_tokenizer
        old = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = Sequence([Lowercase(), *old])
        return tokenizer

    def skipped(self, tokenizer: Any) -> int:
        """Tokens at the beginning of a text that are not pooled: those of its prompt."""
        if self.include_prompt or not self.prompt:
            return 0
        ids = tokenizer(self.prompt)["input_ids"]
        return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def read(directory: Path) -> tuple[Pooling, Settings] | None:
    """What `modules.json` and the files it names say; None where there is no such file.

    Raises:
        InputError: a file that cannot be read, or something in it that is not implemented.
    """
    if not (directory / MODULES).is_file():
        return None
    (_, pooling), *others = _modules(directory)[1:]
    with JsonObject(directory / pooling / CONFIG) as config:
        mode = _mode(config)
        include = config.take("include_prompt", bool)
        config.ignore("word_embedding_dimension", "embedding_dimension")
    with JsonObject(directory / OPTIONS, optional=True) as options:
        options.expect("model_type", "SentenceTransformer")
        options.ignore("__version__", "requirements")
        # Every model has these two.
        prompts = {"query": "", "document": ""} | (options.take("prompts", dict) or {})
        if not all(isinstance(prompt, str | None) for prompt in prompts.values()):
            raise InputError(f"{options.file}: prompts: found {prompts}, expected texts by name")
        name = options.take("default_prompt_name", str)
        if name is not None and name not in prompts:
            raise InputError(
                f"{options.file}: default_prompt_name: found {name!r}, expected one of the prompts "
                f"{', '.join(prompts)}"
            )
        similarity, width = options.take("similarity_fn_name", str), options.size("truncate_dim")
    found = (directory / file for file in TEXT_FILES if (directory / file).is_file())
    with JsonObject(next(found, directory / TEXT_FILE), optional=True) as text:
        lower, length = text.take("do_lower_case", bool), text.size("max_seq_length")
        # Lengths of encode_query and encode_document, and how padding is saved.
        text.ignore("query_length", "document_length", "unpad_inputs")
        for key in ("model_args", "model_kwargs"):
            loading = text.take(key, dict) or {}
            if not loading.keys() <= _LOADING:
                raise InputError(f"{text.file}: {key}: found {loading}, expected none")
        text.expect("transformer_task", "feature-extraction")
        text.expect("module_output_name", "token_embeddings")
        plain = {"method": "forward", "method_output_name": "last_hidden_state"}
        text.expect("modality_config", {"text": plain})
    layers = tuple(_dense(directory / path) for kind, path in others if kind == "Dense")
    for kind, path in others:
        if kind == "Normalize":
            with JsonObject(directory / path / CONFIG, optional=True) as normalize:
                _expect_vector(normalize)
    return (
        Pooling(mode, ("Normalize" in dict(others)), layers, width),
        Settings(
            bool(lower),
            {name: prompt or "" for name, prompt in prompts.items()},
            name,
            include is not False,
            length,
            similarity,
        ),
    )


def _modules(directory: Path) -> list[tuple[str, str]]:
    """(kind, directory) of each module: a Transformer, a Pooling, then Dense, then Normalize."""
    file, found = directory / MODULES, []
    for module in read_json(file, list, f"the modules of {_PACKAGE}"):
        names = [module.get(key) if isinstance(module, dict) else None for key in ("type", "path")]
        name, path = map(str, names)
        package, kind = name.partition(".")[0], name.rpartition(".")[2]
        if package != _PACKAGE or kind not in _KINDS:
            raise InputError(
                f"{file}: the module {name} is not implemented, only {', '.join(_KINDS)} of "
                f"{_PACKAGE} are; give a model without it"
            )
        within = path not in ("", "..") and path == Path(path).name
        if not (path == "" if kind == "Transformer" else within):
            expected = "'', the model's" if kind == "Transformer" else "one within the model's"
            raise InputError(f"{file}: found {kind} in the directory {path!r}, expected {expected}")
        found.append((kind, path))
    kinds = [kind for kind, _ in found]
    if "Pooling" not in kinds:
        raise InputError(f"{file}: found no Pooling, expected one module of it")
    once = all(kinds.count(kind) == 1 for kind in _KINDS[:2])
    if not once or kinds != sorted(kinds, key=_KINDS.index):
        raise InputError(
            f"{file}: found the modules {', '.join(kinds)}, expected {', '.join(_KINDS)} in this "
            "order, of the first two one each"
        )
    return found


def _mode(config: JsonObject) -> Any:
    """The one mode: `pooling_mode`, before version 6 a flag for each."""
    modes = config.take("pooling_mode", str | list)
    flags = {mode: config.take(_FLAG + flag, bool) for mode, flag in MODES.items()}
    if modes is None:
        modes = [mode for mode, on in flags.items() if on]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in MODES:
        raise InputError(
            f"{config.file}: pooling by {', '.join(map(str, modes)) or 'nothing'} is not "
            f"implemented, expected one of {', '.join(MODES)}"
        )
    return modes[0]


def _dense(directory: Path) -> DenseLayer:
    with JsonObject(directory / CONFIG) as config:
        shape = (config.size("out_features"), config.size("in_features"))
        has_bias = config.take("bias", bool) is not False
        name = config.take("activation_function", str) or _ACTIVATION
        _expect_vector(config)
    activation = name.rpartition(".")[2]
    if not name.startswith("torch.nn.") or activation not in ACTIVATIONS:
        raise InputError(
            f"{config.file}: activation_function: found {name}, expected one of torch.nn: "
            f"{', '.join(ACTIVATIONS)}"
        )
    tensors = read_tensors(directory)
    expected = {"linear.weight": shape} | ({"linear.bias": shape[:1]} if has_bias else {})
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if found != expected:
        raise InputError(f"{directory}: found the tensors {found}, expected {expected}")
    arrays = {key: tensor.read().astype("float32") for key, tensor in tensors.items()}
    return DenseLayer(arrays["linear.weight"].T, arrays.get("linear.bias"), activation)


def _expect_vector(config: JsonObject) -> None:
    """A module that reads the pooled vector and writes it."""
    for key in ("module_input_name", "module_output_name"):
        config.expect(key, "sentence_embedding")


def check_widths(directory: Path, pooling: Pooling, width: int) -> int:
    """The numbers of a vector; refuses layers that do not fit each other, or hidden states of this
    `width`.
    """
    for layer in pooling.layers:
        if len(layer.kernel) != width:
            raise InputError(
                f"{directory}: found a Dense of {len(layer.kernel)} inputs behind vectors of "
                f"{width} numbers; expected the module that belongs to the model"
            )
        width = layer.kernel.shape[1]
    return min(width, pooling.width or width)


def files(directory: Path) -> list[str]:
    """The names of the files that a copy of the model needs; not all of them have to be there."""
    beside = (CONFIG, "model.safetensors", "pytorch_model.bin")
    parts = sorted(path.parent.name for path in directory.glob(f"[0-9]*_*/{CONFIG}"))
    return [MODULES, OPTIONS, *TEXT_FILES, *(f"{part}/{name}" for part in parts for name in beside)]


def write_dense(directory: Path, number: int, params: dict[str, Any]) -> None:
    """Writes the weights of a layer behind the pooling; see `pooling.DenseLayer.params`."""
    arrays = {"linear.weight": np.asarray(params["kernel"]).T}
    if "bias" in params:
        arrays["linear.bias"] = np.asarray(params["bias"])
    (directory / _dense_directory(number)).mkdir(exist_ok=True)
    saving.write_weights(
        directory / _dense_directory(number), arrays, "safetensors", saving.MAX_SHARD_BYTES
    )


def _dense_directory(number: int) -> str:
    return f"{2 + number}_Dense"


def write(
    directory: Path,
    pooling: Pooling,
    *,
    width: int,
    max_length: int,
    settings: Settings | None = None,
) -> None:
    """Writes, beside a model, what sentence-transformers needs to make the same vectors of it.

    pooling: the weights of its layers are for `write_dense`. width: of the model's hidden states.
    max_length: tokens to which texts are cut, whatever `settings` say.
    """
    settings = settings or Settings()
    modules = [("", "Transformer"), (POOLING_DIRECTORY, "Pooling")]
    for i, layer in enumerate(pooling.layers):
        modules.append((_dense_directory(i), "Dense"))
        (directory / _dense_directory(i)).mkdir(exist_ok=True)
        inputs, outputs = layer.kernel.shape
        place = "linear" if layer.activation == "Identity" else "activation"
        dense = {
            "in_features": inputs,
            "out_features": outputs,
            "bias": layer.bias is not None,
            "activation_function": f"torch.nn.modules.{place}.{layer.activation}",
        }
        write_json(directory / _dense_directory(i) / CONFIG, dense)
    if pooling.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    content = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_PACKAGE}.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    flags = {_FLAG + flag: mode == pooling.mode for mode, flag in MODES.items()}
    flags["include_prompt"] = settings.include_prompt
    (directory / POOLING_DIRECTORY).mkdir(exist_ok=True)
    write_json(directory / POOLING_DIRECTORY / CONFIG, {"word_embedding_dimension": width, **flags})
    text = {"max_seq_length": max_length, "do_lower_case": settings.lower_case}
    write_json(directory / TEXT_FILE, text)
    options = {
        "prompts": settings.prompts,
        "default_prompt_name": settings.default_prompt_name,
        "similarity_fn_name": settings.similarity,
        "truncate_dim": pooling.width,
    }
    write_json(directory / OPTIONS, {k: v for k, v in options.items() if v is not None})
    write_json(directory / MODULES, content)
