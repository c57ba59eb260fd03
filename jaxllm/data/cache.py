"""Token arrays on disk, one directory for each content, memory-mapped when read."""

import functools
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.files import read_json, user_cache, writing

_LOG = logging.getLogger(__name__)
_META = "meta.json"
_STALE_SECONDS = 24 * 3600
_BLOCK = 1 << 20  # bytes

Arrays = dict[str, np.ndarray]
Entry = tuple[Arrays, dict[str, Any]]  # arrays by name, and what else is known of them
Fault = Callable[[Arrays, dict[str, Any]], str | None]  # what is wrong with an entry


def entry_of(data: DataConfig, fields: Iterable[str], **content: Any) -> Path:
    """The directory of the arrays that `content` and these `fields` of `data` decide on: within
    ``data.cache_dir``, or ``jaxllm`` in the user's cache directory.
    """
    content["data"] = {name: getattr(data, name) for name in fields}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    cache = user_cache() if data.cache_dir is None else Path(data.cache_dir).expanduser()
    return cache / key


def load(
    entry: Path | None,
    build: Callable[["Store"], dict[str, Any]],
    fault: Fault,
) -> Entry:
    """The arrays of an entry and their description, as `build` makes them where they are not there.

    Without an `entry` the arrays stay in memory.

    Bytes are believed once their checksums are right, which is looked at on the first use of an
    entry in a process, and `fault` finds nothing wrong in them; else the entry is made again.

    Raises:
        InputError: the disk is full, or the directory may not be written.
    """
    if entry is None:
        store = Store()
        about = build(store)
        return store.arrays(), about
    found = read(entry, fault)
    if found is None:
        with writing_entry(entry, fault) as store:
            found = store.seal(build(store))
    return found


def read(entry: Path, fault: Fault) -> Entry | None:
    """An entry; None if it is not there, or is damaged, which is told."""
    if not entry.exists():
        return None
    try:
        meta = read_json(entry / _META, dict, "the description of token arrays")
        content = meta["content"]
        if _of_json(content) != meta["checksum"]:
            raise ValueError(f"{_META} has other bytes than were written")
        found = _mapped(entry, content), content["about"]
        for name, checksum in content["checksums"].items():
            path = entry / f"{name}.bin"
            stat = path.stat()
            if _checksum(path, stat.st_ino, stat.st_mtime_ns) != checksum:
                raise ValueError(f"{path.name} has other bytes than were written")
        if problem := fault(*found):
            raise ValueError(problem)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        _LOG.warning("%s: tokenized text, damaged (%s); it is made again", entry, error)
        return None
    return found


def array_fault(
    arrays: Arrays,
    *,
    lengths: dict[str, int],
    within: dict[str, tuple[int, int]],
    offsets: dict[str, int],
) -> str | None:
    """What is wrong with arrays: `lengths` that they do not have, numbers that are not `within`
    (least, end), or `offsets` that do not rise from 0 to their end.
    """
    if any(len(arrays[name]) != length for name, length in lengths.items()):
        return "arrays are not of one length"
    for name, (least, end) in within.items():
        array = arrays[name]
        if array.size and not (least <= array.min() and array.max() < end):
            return f"{name} are not within {least} and {end - 1}"
    for name, end in offsets.items():
        array = arrays[name]
        if array[0] != 0 or array[-1] != end or (array[1:] < array[:-1]).any():
            return f"{name} do not rise from 0 to {end}"
    return None


def _mapped(folder: Path, content: dict[str, Any]) -> Arrays:
    arrays: Arrays = {}
    for name, (dtype, shape) in content["arrays"].items():
        path = folder / f"{name}.bin"
        if path.stat().st_size != np.dtype(dtype).itemsize * math.prod(shape):
            raise ValueError(f"{path.name} has another size than was written")
        arrays[name] = np.memmap(path, dtype, "r", shape=tuple(shape))
    return arrays


@functools.cache
def _checksum(path: Path, number: int, modified: int) -> int:
    """The CRC-32 of a file of that inode and time; of each once in a process.

    zlib's is the quickest checksum of the standard library: 0.6 GB/s where SHA-256 gives 0.5 and
    BLAKE2b 0.1.
    """
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _of_json(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


class Store:
    """Arrays that grow by `append`: in memory, or in files when `folder` is given."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._parts: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[str, list[int]]] = {}
        self._checksums: dict[str, int] = {}

    def append(self, name: str, array: np.ndarray) -> None:
        """Adds rows to the array `name`; type and further axes as the first time."""
        if self.folder is None:
            self._parts.setdefault(name, []).append(array)
            return
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
            self._shapes[name] = (array.dtype.str, [0, *array.shape[1:]])
        data = np.ascontiguousarray(array).data
        self._files[name].write(data)
        self._checksums[name] = zlib.crc32(data, self._checksums.get(name, 0))
        self._shapes[name][1][0] += len(array)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was appended, of a store in memory."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def seal(self, about: dict[str, Any]) -> Entry:
        """Completes the files with their description, and gives them as `load` does."""
        assert self.folder is not None
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        content = {"arrays": self._shapes, "checksums": self._checksums, "about": about}
        written = json.dumps({"checksum": _of_json(content), "content": content})
        (self.folder / _META).write_text(written, encoding="utf-8")
        return _mapped(self.folder, content), json.loads(json.dumps(about))

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


@contextmanager
def writing_entry(entry: Path, fault: Fault) -> Iterator[Store]:
    """A store that becomes `entry` when the block ends well, and vanishes when it does not.

    Where another process has made the same entry meanwhile, that one stays, see `load`.

    Raises:
        InputError: the disk is full, or the directory may not be written.
    """
    way_out = "Make room, or set data.cache_dir to a directory that can be written."
    with writing(f"the cache of tokenized text {entry}", way_out):
        entry.parent.mkdir(parents=True, exist_ok=True)
        _sweep(entry.parent)
        folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=entry.parent))
        store = Store(folder)
        try:
            yield store
            store.close()
            _put(folder, entry, fault)
        finally:
            store.close()
            shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, entry: Path, fault: Fault) -> None:
    """Renames `folder` to `entry`; a damaged one there is moved into `folder`'s place and goes."""
    while True:
        try:
            os.rename(folder, entry)
            return
        except OSError:
            if not entry.exists():
                raise
            if read(entry, fault) is not None:
                return
            damaged = Path(tempfile.mkdtemp(prefix=".tmp-", dir=entry.parent))
            try:
                os.rename(entry, damaged)
            except FileNotFoundError:  # another process was faster
                pass
            finally:
                shutil.rmtree(damaged, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Removes what killed processes have left, once it is a day old."""
    for left in parent.glob(".tmp-*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # its owner has just renamed it
            continue
