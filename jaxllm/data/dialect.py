"""How the cells of a csv or tsv file are divided and quoted: as the file shows, unless told."""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jaxllm.config.fields import DataConfig

_ROWS, _CHARACTERS = 1000, 1 << 20  # what is looked at, at most
_DELIMITERS = (",", ";", "\t", "|")
_QUOTES = {"double": '"', "single": "'", "none": ""}
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # a first line "sep=;" is Excel's


class Dialect(NamedTuple):
    """What stands between cells and around them; `quote` is empty where quotes are text.

    `skipped`: lines at the beginning that are no rows.
    """

    delimiter: str
    quote: str
    skipped: int = 0

    def reader(self, lines: Iterable[str]) -> Any:
        """The `csv.reader` of lines."""
        if not self.quote:
            return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote, strict=True)

    def __str__(self) -> str:
        quotes = next(name for name, quote in _QUOTES.items() if quote == self.quote)
        return f"data.delimiter: {self.delimiter!r}, data.quoting: {quotes}"


def dialect_of(
    lines: Callable[[], Iterator[str]],
    delimiter: str,
    data: DataConfig,
    fits: Callable[[list[str]], bool],
) -> Dialect:
    """The dialect of a file, as the configuration or the file says it.

    Between tabs quotes are text, unless quotes stand only where a writer of csv puts them and
    something shows that one did; so are single quotes everywhere.

    Args:
        lines: begins to read the file.
        delimiter: what cells of a file of this format are expected to stand between.
        fits: whether a header row has the columns that are asked for.
    """
    head = _some(lines())
    separator = _SEPARATOR.fullmatch(head[0]) if head else None
    if separator:
        head = head[1:]
    if data.delimiter != "auto":
        delimiter = data.delimiter.replace("\\t", "\t")
    elif separator:
        delimiter = separator[1]
    else:
        delimiter = _delimiter(head, delimiter, data, fits)
    quote = "" if delimiter == "\t" and not separator else '"'
    plain = Dialect(delimiter, _QUOTES.get(data.quoting, quote), int(bool(separator)))
    if data.quoting != "auto" or not head:
        return plain
    windows = {"'": head}
    if not quote:  # the first cell that has to be quoted may be anywhere
        quoted = itertools.dropwhile(lambda line: '"' not in line, lines())
        windows['"'] = _some(itertools.chain(head[:1], quoted))
    for mark, window in windows.items():
        other = plain._replace(quote=mark)
        if _is_quoted(head, window, other, plain, data.columns):
            return other
    return plain


def _delimiter(
    head: list[str], expected: str, data: DataConfig, fits: Callable[[list[str]], bool]
) -> str:
    """What divides the header into the columns asked for, or without a header most rows."""
    kinds = {d: [Dialect(d, quote) for quote in ("", '"', "'")] for d in (expected, *_DELIMITERS)}
    if data.columns is None:
        fitting = (d for d, kind in kinds.items() if any(fits(_rows(head[:1], k)[0]) for k in kind))
        return next(fitting, expected)
    width = len(data.columns)

    def right(delimiter: str) -> int:
        return max(sum(len(row) == width for row in _rows(head, k)) for k in kinds[delimiter])

    return max(kinds, key=right) if width > 1 else expected


def _is_quoted(
    head: list[str], window: list[str], quoted: Dialect, plain: Dialect, columns: list[str] | None
) -> bool:
    """Whether quotes stand only where a writer of csv puts them, and something shows that one did:
    rows that are even with them alone, a doubled quote, or a header or column that is all quoted.

    `head` begins the file; `window` is where quotes are first met.
    """
    q, d = re.escape(quoted.quote), re.escape(quoted.delimiter)
    cell = rf"(?:{q}(?:[^{q}]|{q}{q})*+{q}|[^{q}{d}\n]*+)"
    cut = rf"(?:{q}(?:[^{q}]|{q}{q})*+)?" if _is_cut(window) else ""
    text = "".join(window).rstrip("\n") + "\n"
    if quoted.quote not in text or not re.fullmatch(rf"(?:{cell}[{d}\n])*+{cut}\n?", text):
        return False
    if not _even(_rows(window, quoted), columns):
        return False
    rows = _rows(window, plain)
    if not _even(rows, columns):
        return True
    mark = quoted.quote
    if any(_wrapped(cell, mark) and mark * 2 in cell[1:-1] for row in rows for cell in row):
        return True
    rows = _rows(head, plain)
    if columns is None and all(_wrapped(cell, mark) for cell in rows.pop(0)):
        return True
    return len(rows) > 1 and any(
        all(_wrapped(c, mark) for c in cells) for cells in zip(*rows, strict=False)
    )


def _wrapped(cell: str, mark: str) -> bool:
    return len(cell) > 1 and cell[0] == mark == cell[-1]


def _even(rows: list[list[str]], columns: list[str] | None) -> bool:
    width = len(rows[0] if columns is None else columns)
    return all(len(row) == width for row in rows)


def _rows(lines: list[str], dialect: Dialect) -> list[list[str]]:
    """The rows of lines; an empty one for what cannot be read."""
    reader = dialect.reader(lines)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error:
        if reader.line_num < len(lines) or not _is_cut(lines):
            rows.append([])
    return rows or [[]]


def _some(lines: Iterable[str]) -> list[str]:
    """The first lines that are not blank."""
    some: list[str] = []
    size = 0
    for line in lines:
        if not line.isspace():
            some.append(line)
            size += len(line)
        if len(some) == _ROWS or size >= _CHARACTERS:
            break
    return some


def _is_cut(lines: list[str]) -> bool:
    return len(lines) == _ROWS or sum(map(len, lines)) >= _CHARACTERS
