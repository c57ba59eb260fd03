"""JSON out of long texts, a value at a time, so that no more than one of them is in memory."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_BLOCK = 1 << 16  # characters read at least
_NUMBER = 64  # characters; a value that ends so near to the end of the text at hand may go on
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JsonText:
    """A text of JSON and how far it has been read.

    Values that are taken have at most `limit` characters.
    """

    def __init__(self, file: TextIO, limit: int):
        self._file, self._limit = file, limit
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def take(self, character: str) -> bool:
        """Whether `character` comes next; it is then passed."""
        found = self.peek() == character
        self._at += found
        return found

    def value(self) -> Any:
        """The next value.

        Raises:
            ValueError: there is none, or it is too long or nested too deeply; the message has the
                line, but no file.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.pos + _NUMBER > len(self._text) or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    raise self.error(error.msg, error.pos) from None
                end = len(self._text)
            else:
                if (
                    self._ended
                    or end + _NUMBER < len(self._text)
                    or not isinstance(value, int | float)
                ):
                    self._check_length(end)
                    self._at = end
                    return value
            self._check_length(end)
            self._more()

    def whole_array(self) -> Iterator[Any]:
        """The items of the array that the text is, as `value`."""
        for _ in self.members("[", "]"):
            yield self.value()
        if self.peek():
            raise self.error("expected the end, behind an array")

    def members(self, begin: str, end: str) -> Iterator[None]:
        """Stops in front of each member of the array or object that comes next."""
        if not self.take(begin):
            raise self.error(f"expected {begin}")
        if self.take(end):
            return
        while True:
            yield
            if self.take(end):
                return
            if not self.take(","):
                raise self.error(f"expected , or {end}")

    def error(self, problem: str, at: int | None = None) -> ValueError:
        """`problem` with its line; `at` is where in the text at hand."""
        before = self._text.count("\n", 0, self._at if at is None else at)
        return ValueError(f"line {self._line + before}: {problem}")

    def _check_length(self, end: int) -> None:
        if end - self._at > self._limit:
            raise self.error(f"longer than data.max_row_bytes={self._limit}")

    def _more(self) -> None:
        """Reads on, at least as much as is unread: what is read again adds up to twice the text."""
        rest = self._text[self._at :]
        block = self._file.read(max(_BLOCK, len(rest)))
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at, self._ended = rest + block, 0, not block
