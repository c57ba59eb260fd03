"""Files of weights: safetensors, flax.serialization's msgpack, PyTorch's pickles, also sharded."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm import files
from jaxllm.errors import InputError
from jaxllm.names.values import is_whole
from jaxllm.pretrained.flax_msgpack import read_msgpack
from jaxllm.pretrained.tensors import Span, Tensor, damaged, in_file, refuse_pointer
from jaxllm.pretrained.torch_pickle import EXPECTED, read_torch

# In order of preference; of each, the single file before the sharded one.
WEIGHT_FILES = {
    "safetensors": ("model.safetensors", "model.safetensors.index.json"),
    "flax": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
    "torch": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
}
MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the official library
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def weight_files() -> str:
    """The file names looked for, for messages."""
    return ", ".join(name for names in WEIGHT_FILES.values() for name in names)


def find_weights(directory: Path) -> tuple[str, Path] | None:
    """(format, file or, if sharded, index) of the weights in a directory; None without any."""
    for kind, names in WEIGHT_FILES.items():
        for name in names:
            if (directory / name).is_file():
                return kind, directory / name
    return None


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by the name it has in the file (of nested ones, joined by "/").

    Raises InputError for a missing, truncated, damaged or unreadable file, saying which.
    """
    found = find_weights(directory)
    if found is None:
        raise InputError(f"{directory} has no weights; looked for {weight_files()}")
    kind, file = found
    return _read_sharded(file, kind) if file.suffix == ".json" else read_file(file, kind)


def read_file(file: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of one file of a format of WEIGHT_FILES; errors as in `read_tensors`."""
    read, expected = _READERS[kind]
    with files.reading(file, expected):
        refuse_pointer(file)
        return read(file)


def _read_sharded(index: Path, kind: str) -> dict[str, Tensor]:
    expected = 'a JSON object whose "weight_map" names a file for each tensor'
    weight_map: Any = files.read_json(index, dict, expected).get("weight_map")
    with files.reading(index, expected):
        parts = {name: index.parent / Path(file).name for name, file in weight_map.items()}
        missing = sorted({file.name for file in parts.values() if not file.is_file()})
    if missing:
        raise InputError(
            f"{index} names files that are not beside it: {', '.join(missing[:10])}; "
            "download them again, into the same directory"
        )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(parts.values())):
        for name, tensor in read_file(file, kind).items():
            if name in tensors:
                raise InputError(
                    f"{index}: tensor {name} is in {tensors[name].file.name} and in {file.name}; "
                    "expected each in one file; download the files again"
                )
            tensors[name] = tensor
    absent = sorted(name for name in parts if name not in tensors)
    if absent:
        raise InputError(
            f"{index} promises tensors that its files do not hold: {', '.join(absent[:10])}"
            f"{', …' if len(absent) > 10 else ''}; download the files again"
        )
    return tensors


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    """Eight bytes with the header's length, the header (JSON), then the tensors' bytes.

    Specification: https://huggingface.co/docs/safetensors
    """
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise damaged(file, f"a safetensors header of at most {MAX_HEADER} bytes")
        entries = json.loads(f.read(length))
    entries.pop("__metadata__", None)
    start, end, tensors = 8 + length, 0, {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise InputError(
                f"{file}: tensor {name} has dtype {entry['dtype']}; expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )
        dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
        if not all(is_whole(n) and n >= 0 for n in (begin, stop, *shape)):
            raise damaged(file, f"sizes of tensor {name} that are whole numbers")
        if stop - begin != math.prod(shape) * dtype.itemsize:
            raise damaged(file, f"{math.prod(shape) * dtype.itemsize} bytes for tensor {name}")
        if begin != end:  # as in the official library: no overlap, no gap
            raise damaged(file, f"tensor {name} to begin at byte {end} and not at {begin}")
        tensors[name] = in_file(file, shape, dtype, [Span(start + begin, stop - begin)])
        end = stop
    if start + end != size:
        raise damaged(file, f"{start + end} bytes, as its header says")
    return tensors


_READERS: dict[str, tuple[Callable[[Path], dict[str, Tensor]], str]] = {
    "safetensors": (_read_safetensors, "a safetensors file"),
    "flax": (read_msgpack, "a msgpack file of flax.serialization"),
    "torch": (read_torch, EXPECTED),
}
