"""A tensor in a file, read when it is wanted.

Files are read, not mapped into memory: mapped pages would count against the process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllm import files
from jaxllm.errors import InputError


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


def all_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite.

    A finite sum of squares says so at the speed of memory, without a mask; of large numbers it may
    be infinite.
    """
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


@dataclass(frozen=True)
class Span:
    """Bytes of a file."""

    offset: int
    size: int


def in_file(file: Path, shape: tuple[int, ...], dtype: np.dtype, spans: list[Span]) -> Tensor:
    def fill(buffer: np.ndarray) -> None:
        view = memoryview(buffer)  # type: ignore[arg-type]
        with files.reading(file, "the file as it was"), open(file, "rb", buffering=0) as f:
            for span in spans:
                f.seek(span.offset)
                part, view = view[: span.size], view[span.size :]
                while part:
                    count = f.readinto(part)
                    if not count:
                        raise damaged(file, f"at least {span.offset + span.size} bytes")
                    part = part[count:]

    return Tensor(file, shape, dtype, fill)


def damaged(file: Path, expected: str) -> InputError:
    """The error for a file that is not what it should be."""
    return InputError(
        f"{file} ({file.stat().st_size} bytes) is a truncated or damaged file; expected "
        f"{expected}; download or copy it again"
    )


def refuse_pointer(file: Path) -> None:
    """Tells what git leaves in the place of a large file that was not fetched."""
    with open(file, "rb") as f:
        if f.read(64).startswith(b"version https://git-lfs"):
            raise InputError(
                f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in its "
                "repository"
            )
