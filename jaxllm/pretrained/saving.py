"""Writing a checkpoint's directory: all of it or nothing."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm import files
from jaxllm.errors import InputError
from jaxllm.trees import unflatten

MAX_SHARD_BYTES = 5_000_000_000  # of one weights file
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
GENERATION_FILE = "generation_config.json"  # what `generate` takes where it is not given
INPUT_FILE = "jaxllm.json"  # how a row becomes tokens, see `prediction.inputs`


def check_format(weights: str) -> None:
    if weights not in _WRITERS:
        raise InputError(f"weights={weights!r} cannot be written; expected one of {list(_WRITERS)}")


def is_replaceable(directory: Path) -> bool:
    """Whether everything in the directory is of the kinds written here."""
    return all(
        file.name in ("config.json", GENERATION_FILE, *TOKENIZER_FILES)
        or file.name.startswith(("model.safetensors", "model-", "flax_model"))
        for file in directory.iterdir()
    )


def write_directory(directory: Path, fill: Callable[[Path], None], *, replace: bool) -> None:
    """`fill` writes into a temporary directory beside `directory`, which is then renamed to it.

    With `replace` an earlier model there is replaced; a directory with anything else in it is left
    alone. Raises InputError for that and where the disk is full or not writable; then nothing is
    left behind.
    """
    directory = directory.expanduser().absolute()
    files.recover_directory(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; give a directory to write to")
    if directory.is_dir() and any(directory.iterdir()):
        if not replace:
            raise InputError(f"{directory} is not empty; give a new directory")
        if not is_replaceable(directory):
            raise InputError(
                f"{directory} holds files that are no saved model and is left as it is; "
                "give another directory"
            )
    temporary = directory.with_name(f".{directory.name}.writing-{os.getpid()}")
    try:
        with files.writing(str(directory), "Nothing was changed; make room or go elsewhere."):
            temporary.mkdir(parents=True)
            fill(temporary)
            files.replace_directory(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        files.recover_directory(directory)


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def write_tokenizer(directory: Path, tokenizer: Any) -> None:
    """`tokenizer`: a transformers tokenizer, a directory to copy its files from, or None."""
    if isinstance(tokenizer, str | Path):
        copy_files(Path(tokenizer), directory, TOKENIZER_FILES)
    elif tokenizer is not None:
        tokenizer.save_pretrained(directory)


def copy_files(source: Path, directory: Path, names: Iterable[str]) -> None:
    """Copies those that there are."""
    for name in names:
        if (source / name).is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, directory / name)


def write_weights(
    directory: Path, arrays: dict[str, np.ndarray], weights: str, max_bytes: int
) -> None:
    """`arrays` by the names of the format, in one file or, above `max_bytes`, several."""
    stem, suffix = {"safetensors": ("model", "safetensors"), "flax": ("flax_model", "msgpack")}[
        weights
    ]
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if size + array.nbytes > max_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    if len(shards) == 1:
        _WRITERS[weights](directory / f"{stem}.{suffix}", arrays)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}"
        _WRITERS[weights](directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / f"{stem}.{suffix}.index.json", index)


def write_safetensors(file: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        file,
        metadata={"format": "pt"},
    )
    file.chmod(mode)  # safetensors makes a file that only its owner can read


def _write_msgpack(file: Path, arrays: dict[str, np.ndarray]) -> None:
    from flax.serialization import msgpack_serialize

    tree = unflatten({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    file.write_bytes(msgpack_serialize(tree, in_place=True))


_WRITERS = {"safetensors": write_safetensors, "flax": _write_msgpack}
