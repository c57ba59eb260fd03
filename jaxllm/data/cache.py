"""Token arrays on disk, one directory for each content, memory-mapped when read."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxllm.files import user_cache, writing

_META = "meta.json"
_STALE_SECONDS = 24 * 3600


def directory(configured: str | None) -> Path:
    """``data.cache_dir``, or ``jaxllm`` in the user's cache directory."""
    return user_cache() if configured is None else Path(configured).expanduser()


def read(entry: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays and the description of an entry; None if it is not there or is damaged."""
    try:
        meta = json.loads((entry / _META).read_text(encoding="utf-8"))
        arrays: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in meta["arrays"].items():
            path = entry / f"{name}.bin"
            if path.stat().st_size != np.dtype(dtype).itemsize * math.prod(shape):
                return None
            arrays[name] = np.memmap(path, dtype, "r", shape=tuple(shape))
        return arrays, meta["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Store:
    """Arrays that grow by `append`: in memory, or in files when `folder` is given."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._parts: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[str, list[int]]] = {}

    def append(self, name: str, array: np.ndarray) -> None:
        """Adds rows to the array `name`; type and further axes as the first time."""
        if self.folder is None:
            self._parts.setdefault(name, []).append(array)
            return
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
            self._shapes[name] = (array.dtype.str, [0, *array.shape[1:]])
        self._files[name].write(np.ascontiguousarray(array).data)
        self._shapes[name][1][0] += len(array)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was appended, of a store in memory."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def seal(self, about: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Completes the files with their description, and gives them as `read` does."""
        assert self.folder is not None
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        meta = {"arrays": self._shapes, "about": about}
        (self.folder / _META).write_text(json.dumps(meta), encoding="utf-8")
        sealed = read(self.folder)
        assert sealed is not None
        return sealed

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


@contextmanager
def writing_entry(entry: Path) -> Iterator[Store]:
    """A store that becomes `entry` when the block ends well, and vanishes when it does not.

    Where another process has made the same entry meanwhile, that one stays.

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
            _put(folder, entry)
        finally:
            store.close()
            shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, entry: Path) -> None:
    """Renames `folder` to `entry`; a damaged one there is moved into `folder`'s place and goes."""
    while read(entry) is None:
        try:
            os.rename(folder, entry)
        except OSError:
            if not entry.exists():
                raise
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
