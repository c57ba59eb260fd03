"""Lines of a stream, read ahead by a thread and handed over some at a time."""

import select
import threading
from collections.abc import Iterator
from typing import Any, Self

from jaxllm.errors import InputError
from jaxllm.prediction.inputs import LONGEST_LINE

PAUSE = 0.2  # seconds that a line waits for others while the input pauses
BYTES = LONGEST_LINE  # of the lines read ahead: memory is bounded by bytes, not by lines alone
_CHUNK = 1 << 16  # bytes


class LineReader:
    """Within `with`, iterates over windows of the lines of `source`, in order.

    A window is full with `size` lines or with BYTES of them; where the input pauses it is what is
    there. A window is read while the one before is answered, so a stream that is faster than the
    model gives full windows. Of a line beyond LONGEST_LINE bytes the rest is left out.

    source: binary, and unbuffered where it can pause; closed by the thread, unless `keep_open`.
    name: what messages call it.

    Raises:
        InputError: `source` cannot be read.
    """

    def __init__(self, source: Any, name: str, size: int, *, keep_open: bool = False):
        self._source, self._name, self._size, self._keep_open = source, name, size, keep_open
        self._lines: list[bytes] = []
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = self._abandoned = False
        self._error: Exception | None = None
        # A daemon: a read that waits for input must not keep the process from ending.
        self._thread = threading.Thread(target=self._read, name="read-lines", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[list[bytes]]:
        while window := self._next():
            yield window
        if isinstance(self._error, OSError):
            problem = self._error.strerror
            raise InputError(f"{self._name}: cannot be read: {problem}") from self._error
        if self._error is not None:
            raise self._error

    @property
    def _is_full(self) -> bool:
        return len(self._lines) >= self._size or self._bytes >= BYTES

    def _next(self) -> list[bytes]:
        """The next window; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended)
            self._changed.wait_for(lambda: self._is_full or self._ended, timeout=PAUSE)
            window, self._lines, self._bytes = self._lines, [], 0
            self._changed.notify_all()
        return window

    def _read(self) -> None:
        try:
            for line in _lines(self._source):
                with self._changed:
                    self._changed.wait_for(lambda: not self._is_full or self._abandoned)
                    if self._abandoned:
                        return
                    self._lines.append(line)
                    self._bytes += len(line)
                    if len(self._lines) == 1 or self._is_full:
                        self._changed.notify_all()
        except Exception as error:  # raised where the windows are taken
            self._error = error
        finally:
            if not self._keep_open:
                self._source.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def _lines(source: Any) -> Iterator[bytes]:
    """The lines without their ends, each as soon as it is there; see `LineReader`."""
    line = bytearray()
    most = LONGEST_LINE + 1  # the one byte more shows that the line is too long
    while (chunk := source.read(_CHUNK)) != b"":
        if chunk is None:  # nothing is there, of a descriptor that another program made so
            select.select([source], [], [])
            continue
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line += end[: most - len(line)]
            yield bytes(line)
            line.clear()
        line += rest[: most - len(line)]
    if line:
        yield bytes(line)
