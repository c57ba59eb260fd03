"""Writing to disk so that a crash or a full disk leaves the old content or the new, never a mix."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxllm.errors import InputError

T = TypeVar("T")

# What libraries that lose the errno (tensorstore, safetensors) still say in their messages.
_DISK_PHRASES = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "Permission denied",
    "Input/output error",
)


def user_cache() -> Path:
    """``jaxllm`` in the user's cache directory."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "jaxllm"
    except RuntimeError:  # as in a container whose user has no entry and no HOME
        raise InputError(
            "this user has no home directory to keep a cache in; set XDG_CACHE_HOME to a directory"
        ) from None


def disk_problem(error: BaseException) -> str | None:
    """What the operating system said, where `error` or its cause is a failed write; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        for phrase in _DISK_PHRASES:
            if phrase in str(seen):
                return phrase
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def writing(what: str, way_out: str) -> Iterator[None]:
    """Turns a failed write inside into an InputError: what could not be written, why, way out."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        raise InputError(f"could not write {what}: {problem}. {way_out}") from error


@contextlib.contextmanager
def reading(
    path: Path, expected: str, way_out: str = "restore it from a copy, or download it again"
) -> Iterator[None]:
    """Turns whatever goes wrong inside into an InputError: the file is damaged, what was expected.

    Parsers raise more than they document: plain `Exception`, RecursionError, and in Rust a panic,
    which is a BaseException.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.strerror:
            found = f"cannot be read ({error.strerror})"
        else:
            found = f"is damaged ({type(error).__name__}: {str(error)[:200]})"
        raise InputError(f"{path}: {found}; expected {expected}; {way_out}") from error


def read_json(
    path: Path,
    kind: type[T],
    expected: str,
    way_out: str = "restore it from a copy, or download it again",
) -> T:
    """The content of a JSON file, of the type `kind` at the top.

    Raises:
        InputError: as `reading`, also where the top is of another type.
    """
    with reading(path, expected, way_out):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, kind):
        found = f"holds a JSON {type(content).__name__}, not a {kind.__name__}"
        raise InputError(f"{path}: {found}; expected {expected}; {way_out}")
    return content


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file beside `path`, then renames it over `path`.

    Raises:
        InputError: the disk is full, read-only, or may not be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(str(path), "The file is as it was before; make room and run the command again."):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def replace_directory(new: Path, target: Path) -> None:
    """Puts the directory `new` in the place of `target`.

    Two renames: a crash between them leaves the old content in ``.<name>.old``, from where
    `recover_directory` takes it back.
    """
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)


def recover_directory(target: Path) -> None:
    """Undoes a `replace_directory` that a crash cut in half."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    shutil.rmtree(old, ignore_errors=True)


def check_room(directory: Path, size: int) -> None:
    """Raises the error of a full disk before anything is written, where that can be known."""
    free = shutil.disk_usage(directory).free
    if free < size:
        reason = f"{os.strerror(errno.ENOSPC)} ({size:,} bytes are needed, {free:,} are free)"
        raise OSError(errno.ENOSPC, reason)


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with null for each float that JSON has no number for (NaN, infinities)."""
    bad = (name for name, x in record.items() if isinstance(x, float) and not math.isfinite(x))
    return {**record, **dict.fromkeys(bad)}
