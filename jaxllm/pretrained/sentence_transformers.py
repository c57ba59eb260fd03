"""The files in which sentence-transformers keeps how a model's vectors are made, in and out."""

import json
from pathlib import Path
from typing import Any

from jaxllm.errors import InputError
from jaxllm.files import write_json
from jaxllm.pooling import Pooling

MODULES, LENGTH_FILE, POOLING_DIRECTORY = "modules.json", "sentence_bert_config.json", "1_Pooling"
FILES = (
    MODULES,
    LENGTH_FILE,
    "config_sentence_transformers.json",
    f"{POOLING_DIRECTORY}/config.json",
)
MODES = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}


def read_pooling(directory: Path) -> Pooling | None:
    """What `modules.json` and the files it names say; None where there is no such file.

    Raises:
        InputError: a file that cannot be read, or a module or mode that is not implemented.
    """
    if not (directory / MODULES).is_file():
        return None
    mode, normalize = None, False
    for module in _read(directory / MODULES, list):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            mode = _mode(directory / str(module.get("path")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise InputError(
                f"{directory / MODULES}: the module {kind} is not implemented, only Transformer, "
                "Pooling and Normalize are; give a model without it"
            )
    if mode is None:
        raise InputError(f"{directory / MODULES}: found no Pooling, expected one module of it")
    return Pooling(mode, normalize)


def _mode(path: Path) -> Any:
    """The one mode of a Pooling's config.json: `pooling_mode`, before version 6 a flag for each."""
    config = _read(path, dict)
    found = config.get("pooling_mode")
    if found is None:
        prefix = "pooling_mode_"
        found = [k.removeprefix(prefix) for k, on in config.items() if on and k.startswith(prefix)]
    found = [found] if isinstance(found, str) else found
    modes = [mode for mode, flag in MODES.items() if found in ([mode], [flag])]
    if not modes:
        raise InputError(
            f"{path}: pooling by {', '.join(map(str, found)) or 'nothing'} is not implemented, "
            f"expected one of {', '.join(MODES)}"
        )
    return modes[0]


def read_max_length(directory: Path) -> int | None:
    """The tokens to which texts are cut, where the model says so."""
    path = directory / LENGTH_FILE
    return _read(path, dict).get("max_seq_length") if path.is_file() else None


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; is the copy complete?") from None
    if not isinstance(content, kind):
        raise InputError(
            f"{path}: expected a JSON {kind.__name__}, as sentence-transformers has it"
        )
    return content


def write(directory: Path, pooling: Pooling, *, width: int, max_length: int) -> None:
    """Writes, beside a model, what sentence-transformers needs to make the same vectors of it.

    width: of the vectors. max_length: tokens to which texts are cut.
    """
    package = "sentence_transformers.models"
    modules = [("", "Transformer"), (POOLING_DIRECTORY, "Pooling")]
    if pooling.normalize:
        modules.append(("2_Normalize", "Normalize"))
    content = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    flags = {f"pooling_mode_{flag}": mode == pooling.mode for mode, flag in MODES.items()}
    (directory / POOLING_DIRECTORY).mkdir(exist_ok=True)
    write_json(
        directory / POOLING_DIRECTORY / "config.json", {"word_embedding_dimension": width, **flags}
    )
    write_json(directory / LENGTH_FILE, {"max_seq_length": max_length, "do_lower_case": False})
    write_json(directory / MODULES, content)
