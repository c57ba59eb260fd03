"""Lines of text files, plain or .gz: decoded as the file shows, and never a longer one in memory
than `data.max_row_bytes` allows.
"""

import codecs
import gzip
import hashlib
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from jaxllm.config.fields import DataConfig
from jaxllm.errors import InputError

_BLOCK = 1 << 16  # bytes read at a time
_SAMPLE = 1 << 20  # bytes in which encodings are tried
_TRIED = ("gb18030", "big5", "shift_jis", "cp949", "cp1251", "cp1252")
_ODD_WORD = re.compile(r"[^\s,;|\"]*[^\0-\x7f\s][^\s,;|\"]*")
# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file; of a .gz file what is packed in it."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def sha256(path: Path) -> str:
    """Of a file's bytes; InputError where they cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def open_text(path: Path, encoding: str) -> TextIO:
    """The text of a file, with "\\n" as its line ends; `encoding` as ``data.encoding`` has it."""
    found = encoding_of(path) if encoding == "auto" else encoding
    if codecs.lookup(found).name == "utf-8":
        found = "utf-8-sig"
    return io.TextIOWrapper(open_bytes(path), found)


def encoding_of(path: Path) -> str:
    """What the first bytes of a file show: a byte order mark, or UTF-16 without one; else UTF-8."""
    with open_bytes(path) as file:
        head = file.read(4096)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    # Of text in UTF-16 every other byte is 0 where the characters are ASCII; UTF-8 has no 0 at all.
    for encoding, high in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if high.count(0) > max(len(head) // 8, 8 * (head.count(0) - high.count(0))):
            return encoding
    return "utf-8-sig"


def lines(path: Path, data: DataConfig) -> Iterator[str]:
    """The lines of a file with "\\n" at their ends.

    One of more than ``data.max_row_bytes`` comes as "", and is the last one unless such rows are
    dropped: gzip can unpack a file to a thousand times its size.

    Raises:
        UnicodeDecodeError, OSError, EOFError, zlib.error: see `unreadable`.
    """
    limit = data.max_row_bytes
    with open_text(path, data.encoding) as file:
        while line := file.readline(limit + 1):
            if not beyond(line, limit):
                yield line
                continue
            yield ""
            if data.on_bad_row != "drop":
                return
            while line and not line.endswith("\n"):
                line = file.readline(_SAMPLE)


def beyond(value: Any, limit: int) -> bool:
    """Whether a text, or the texts of a list, have more than `limit` bytes in UTF-8."""
    if value is None or (isinstance(value, str) and len(value) * 4 <= limit):
        return False
    texts = value if isinstance(value, list) else [value]
    size = sum(len(text) for text in texts if isinstance(text, str))
    if size * 4 <= limit or size > limit:  # the longest character has four
        return size > limit
    encoded = (t.encode("utf-8", "surrogatepass") for t in texts if isinstance(t, str))
    return sum(map(len, encoded)) > limit


def too_long(data: DataConfig) -> str:
    """The fault of a row, line or document that is too long."""
    return f"longer than data.max_row_bytes={data.max_row_bytes}"


def unreadable(path: Path, error: Exception, encoding: str) -> InputError:
    """The message for what reading `path` raised."""
    if isinstance(error, UnicodeDecodeError):
        return _undecodable(path, encoding)
    return InputError(f"{path}: cannot be read: {error}; is the copy complete?")


def _undecodable(path: Path, configured: str) -> InputError:
    """Where a file is not in its encoding, and which others fit it."""
    encoding = encoding_of(path) if configured == "auto" else configured
    name = encoding.removesuffix("-sig").upper()
    decoder = codecs.getincrementaldecoder(encoding)()
    number, line_at, offset, plain = 1, 0, 0, True
    with open_bytes(path) as file:
        while True:
            block = file.read(_BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = offset + len(block) - len(error.object) + error.start
                break
            if not block:
                return InputError(f"{path}: is not {name}")
            offset += len(block)
        file.seek(0)
        rest = at
        while rest > 0:  # the lines before it
            block = file.read(min(_BLOCK, rest))
            plain &= block.isascii()
            if b"\n" in block:
                number += block.count(b"\n")
                line_at = at - rest + block.rindex(b"\n") + 1
            rest -= len(block)
        odd = file.read(1)[0]
        file.seek(max(line_at, at - _BLOCK))
        sample = file.read(_SAMPLE)
    where = f"{path}, line {number}: byte {odd:#04x} at offset {at} is not {name}"
    if configured == "auto" and not plain:
        where += ", which the text before it is; is the file damaged there?"
    readings = [f"{other} ({words})" for other in _TRIED if (words := _odd_words(sample, other))]
    if not readings:
        return InputError(f"{where}; save the file as UTF-8, or give its data.encoding")
    return InputError(
        f"{where}; encodings that fit, with what they make of the first such words: "
        f"{', '.join(readings)}. Set data.encoding to the one that reads right, or save the file "
        "as UTF-8"
    )


def _odd_words(sample: bytes, encoding: str) -> str:
    """The first words that are not ASCII as `encoding` reads them; none if it does not fit."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        text = decoder.decode(sample, final=len(sample) < _SAMPLE)
    except UnicodeDecodeError:
        return ""
    words = itertools.islice(_ODD_WORD.finditer(text), 3)
    return " ".join(word[0][:20] for word in words)
