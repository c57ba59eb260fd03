"""Tensor files: what is in them and where, so that one tensor at a time is read from the disk.

Nothing here maps a file into memory: mapped pages would count against the process while it loads.
Formats: safetensors (https://huggingface.co/docs/safetensors), the msgpack files of
flax.serialization, PyTorch's pickles.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxllm.errors import InputError

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
# Kinds of flax.serialization's msgpack extension objects.
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file; `fill` copies its bytes into a flat uint8 buffer."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[np.ndarray], None]

    def read(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        self.read_into(out)
        return out

    def read_into(self, out: np.ndarray) -> None:
        """`out`: C-contiguous, of this shape and dtype."""
        self.fill(out.reshape(-1).view(np.uint8))


@dataclass(frozen=True)
class Span:
    """Bytes of a file."""

    offset: int
    size: int


def weight_files() -> str:
    """The file names looked for, for messages."""
    return ", ".join(name for names in WEIGHT_FILES.values() for name in names)


def find_weights(directory: Path) -> tuple[str, Path] | None:
    """(format, file) of the weights in a directory;

    the index for sharded ones; None without any.
    """
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


def damaged(file: Path, expected: str) -> InputError:
    """The error for a file that is not what it should be."""
    with open(file, "rb") as f:
        pointer = f.read(64).startswith(b"version https://git-lfs")
    found = "a git-lfs pointer, not the file itself" if pointer else "a truncated or damaged file"
    way_out = "run `git lfs pull` in its repository" if pointer else "download or copy it again"
    return InputError(
        f"{file} ({file.stat().st_size} bytes) is {found}; expected {expected}; {way_out}"
    )


def _in_file(file: Path, shape: tuple[int, ...], dtype: np.dtype, spans: list[Span]) -> Tensor:
    def fill(buffer: np.ndarray) -> None:
        view = memoryview(buffer)  # type: ignore[arg-type]
        with open(file, "rb", buffering=0) as f:
            for span in spans:
                f.seek(span.offset)
                part, view = view[: span.size], view[span.size :]
                while part:
                    count = f.readinto(part)
                    if not count:
                        raise damaged(file, f"at least {span.offset + span.size} bytes")
                    part = part[count:]

    return Tensor(file, shape, dtype, fill)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    """Eight bytes with the header's length, the header (JSON), then the tensors' bytes."""
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
            tensors[name] = _in_file(file, shape, dtype, [Span(start + begin, stop - begin)])
            end = max(end, start + stop)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, "a safetensors header") from error
    if end != size:
        raise damaged(file, f"{end} bytes, as its header says")
    return tensors


def _read_msgpack(file: Path) -> dict[str, Tensor]:
    size = file.stat().st_size
    with open(file, "rb") as f:
        scanner = _Scanner(file, f, size)
        try:
            tree = scanner.value()
        except InputError:
            raise
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise damaged(file, "a msgpack file of flax.serialization") from error
        if scanner.position != size or not isinstance(tree, dict):
            raise damaged(file, "one msgpack map, as flax.serialization writes it")
    tensors: dict[str, Tensor] = {}

    def flatten(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                flatten(child, f"{path}/{key}" if path else str(key))
        elif isinstance(node, Tensor):
            tensors[path] = node
        else:
            raise InputError(f"{file}: {path} holds {node!r:.40}; expected an array")

    flatten(tree, "")
    return tensors


class _Scanner:
    """Walks a msgpack file and skips the arrays' bytes.

    Specification: https://github.com/msgpack/msgpack/blob/master/spec.md
    """

    def __init__(self, file: Path, stream: BinaryIO, size: int):
        self.file, self.stream, self.size = file, stream, size
        self.position = 0

    def span(self, size: int) -> Span:
        span = Span(self.position, size)
        self.position += size
        if self.position > self.size:
            raise damaged(self.file, f"at least {self.position} bytes")
        return span

    def take(self, size: int) -> bytes:
        span = self.span(size)
        self.stream.seek(span.offset)
        return self.stream.read(size)

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def value(self) -> Any:
        """Byte strings come back as the Span they fill, arrays of flax as Tensors."""
        tag = self.number(1)
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag <= 0x8F:
            return self.map(tag & 0x0F)
        if tag <= 0x9F:
            return [self.value() for _ in range(tag & 0x0F)]
        if tag <= 0xBF:
            return self.take(tag & 0x1F).decode()
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if tag <= 0xC6:
            return self.span(self.number(1 << (tag - 0xC4)))
        if tag <= 0xC9:
            return self.extension(self.number(1 << (tag - 0xC7)))
        if tag <= 0xCB:
            self.span(4 if tag == 0xCA else 8)
            return math.nan  # no weight is a bare float: the caller reports it
        if tag <= 0xCF:
            return self.number(1 << (tag - 0xCC))
        if tag <= 0xD3:
            return self.number(1 << (tag - 0xD0), signed=True)
        if tag <= 0xD8:
            return self.extension(1 << (tag - 0xD4))
        if tag <= 0xDB:
            return self.take(self.number(1 << (tag - 0xD9))).decode()
        if tag <= 0xDD:
            return [self.value() for _ in range(self.number(2 << (tag - 0xDC)))]
        return self.map(self.number(2 << (tag - 0xDE)))

    def map(self, length: int) -> Any:
        node = {self.value(): self.value() for _ in range(length)}
        if "__msgpack_chunked_array__" not in node:
            return node
        # flax cuts arrays above 1 GiB into flat pieces, numbered from "0".
        shape = tuple(node["shape"][str(i)] for i in range(len(node["shape"])))
        chunks = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
        dtype = chunks[0].dtype
        sizes = [math.prod(chunk.shape) * dtype.itemsize for chunk in chunks]
        if sum(sizes) != math.prod(shape) * dtype.itemsize:
            raise damaged(self.file, f"chunks that fill an array of shape {shape}")

        def fill(buffer: np.ndarray) -> None:
            for chunk, part in zip(chunks, np.split(buffer, np.cumsum(sizes)[:-1]), strict=True):
                chunk.fill(part)

        return Tensor(self.file, shape, dtype, fill)

    def extension(self, size: int) -> Any:
        kind = self.number(1)
        end = self.position + size
        if kind not in (_NDARRAY, _SCALAR):
            self.span(size)
            return {_COMPLEX: "a complex number"}.get(kind, f"msgpack extension {kind}")
        shape, name, data = self.value()
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        if self.position != end or data.size != math.prod(shape) * dtype.itemsize:
            raise damaged(self.file, f"an array of {dtype.name} and shape {tuple(shape)}")
        return _in_file(self.file, tuple(shape), dtype, [data])


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


_READERS = {"safetensors": _read_safetensors, "flax": _read_msgpack, "torch": _read_torch}
