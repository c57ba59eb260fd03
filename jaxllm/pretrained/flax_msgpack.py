"""The msgpack files of flax.serialization, without reading their arrays."""

import math
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxllm.errors import InputError
from jaxllm.pretrained.tensors import Span, Tensor, damaged, in_file

# Kinds of flax.serialization's msgpack extension objects.
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3


def read_msgpack(file: Path) -> dict[str, Tensor]:
    """The arrays by their path in the tree, its parts joined by "/".

    Raises InputError if the file is truncated or holds anything but arrays, and whatever comes if
    it is damaged otherwise.
    """
    size = file.stat().st_size
    with open(file, "rb") as f:
        scanner = Scanner(file, f, size)
        tree = scanner.value()
    if scanner.position != size or not isinstance(tree, dict):
        raise damaged(file, "one msgpack map, as flax.serialization writes it")
    tensors: dict[str, Tensor] = {}

    def flatten(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                flatten(child, f"{path}/{key}" if path else str(key))
        elif isinstance(node, Tensor) and path not in tensors:
            tensors[path] = node
        else:
            raise InputError(f"{file}: {path} holds {node!r:.40}; expected one array")

    flatten(tree, "")
    return tensors


class Scanner:
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
        if dtype.kind not in "biuf" and dtype != ml_dtypes.bfloat16:
            raise damaged(self.file, f"numbers and not {dtype.name}")
        if self.position != end or data.size != math.prod(shape) * dtype.itemsize:
            raise damaged(self.file, f"an array of {dtype.name} and shape {tuple(shape)}")
        return in_file(self.file, tuple(shape), dtype, [data])
