"""Files of weights: safetensors, flax.serialization's msgpack, PyTorch's pickles, also sharded."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.errors import InputError
from jaxllm.pretrained.flax_msgpack import read_msgpack
from jaxllm.pretrained.tensors import Span, Tensor, damaged, in_file

# In order of preference; of each, the single file before the sharded one.
WEIGHT_FILES = {
    "safetensors": ("model.safetensors", "model.safetensors.index.json"),
    "flax": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
    "torch": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
}
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
    if file.suffix == ".json":
        return _read_sharded(file, _READERS[kind])
    return _READERS[kind](file)


def _read_sharded(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: index.parent / Path(file).name for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(index, 'a JSON object with a "weight_map"') from error
    missing = sorted({file.name for file in files.values() if not file.is_file()})
    if missing:
        raise InputError(
            f"{index} names files that are not beside it: {', '.join(missing)}; "
            "download them again, into the same directory"
        )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        tensors |= read(file)
    absent = sorted(name for name, file in files.items() if name not in tensors)
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
        if size < 8 or length > size - 8:
            raise damaged(file, "a safetensors header")
        header = f.read(length)
    start = 8 + length
    tensors, end = {}, start
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            begin, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if entry["dtype"] not in SAFETENSORS_DTYPES:
                raise InputError(
                    f"{file}: tensor {name} has dtype {entry['dtype']}; expected one of "
                    f"{', '.join(SAFETENSORS_DTYPES)}"
                )
            dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
            if begin < 0 or stop - begin != math.prod(shape) * dtype.itemsize:
                raise damaged(file, f"{math.prod(shape) * dtype.itemsize} bytes for tensor {name}")
            tensors[name] = in_file(file, shape, dtype, [Span(start + begin, stop - begin)])
            end = max(end, start + stop)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, "a safetensors header") from error
    if end != size:
        raise damaged(file, f"{end} bytes, as its header says")
    return tensors


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{file} is a PyTorch pickle and torch is not installed; `pip install torch`, or run, "
            f"where it is, `jaxllm convert {file.parent} DST --weights safetensors`"
        ) from error
    import pickle
    import zipfile

    try:
        # Files older than PyTorch 1.6 are no zip archives and cannot be mapped.
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise damaged(file, "a PyTorch state dict of tensors only") from error
    if not isinstance(state, dict):
        raise damaged(file, "a PyTorch state dict of tensors only")
    return {name: _from_torch(file, name, value) for name, value in state.items()}


def _from_torch(file: Path, name: str, value: Any) -> Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise InputError(f"{file}: {name} holds a {type(value).__name__}; expected a tensor")
    is_bfloat16 = value.dtype == torch.bfloat16
    flat = value.detach().contiguous()  # numpy has no bfloat16 that torch knows of
    array: np.ndarray = (flat.view(torch.int16) if is_bfloat16 else flat).numpy()
    dtype = np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else array.dtype

    def fill(buffer: np.ndarray) -> None:
        buffer[:] = array.reshape(-1).view(np.uint8)

    return Tensor(file, tuple(value.shape), dtype, fill)


_READERS = {"safetensors": _read_safetensors, "flax": read_msgpack, "torch": _read_torch}
