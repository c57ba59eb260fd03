"""Rows out of csv, tsv, jsonl, text and CoNLL files, each also .gz.

The fields are taken apart here, not by pandas or Arrow, because those guess types (the text "NA"
becomes a missing value, "1.0" a number, a date a timestamp) and lose the row number that an error
message needs. Files are streamed: in memory is a row at a time.
"""

import csv
import itertools
import json
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxllm.config.fields import DataConfig
from jaxllm.data import conll
from jaxllm.data.dialect import Dialect, dialect_of
from jaxllm.data.folders import folder_source
from jaxllm.data.json_stream import JsonText
from jaxllm.data.lines import beyond, lines, open_text, sha256, too_long, unreadable
from jaxllm.data.rows import Row, Source, columns_of, row_of, rows_of
from jaxllm.errors import InputError

_LOG = logging.getLogger(__name__)

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".conll": "conll",
    ".conllu": "conll",
}


def file_source(path: Path, data: DataConfig, *, labelled: bool) -> Source:
    """A file of ``data.format``; of rows with labels also a folder, see `folders`.

    Raises:
        InputError: the file is missing, empty, of an unknown format, or text where a label is due.
    """
    if labelled and path.is_dir():
        return folder_source(path, data, labelled=True)
    if not path.is_file():
        found = "is not a file" if path.exists() else f"no such file (looked in {Path.cwd()})"
        raise InputError(f"{path}: {found}; data.train and data.dev name the files to read")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; data.train and data.dev name files of text")
    name = _format(path, data)
    if name == "text" and (labelled or data.text_pair is not None):
        missing = "label missing" if labelled else "data.text_pair is missing"
        raise InputError(
            f"{path}: {missing}: a text file holds one text a line and no other column; for text, "
            "tab, label on every line set data.format: tsv and data.columns: [text, label]; where "
            "each file is a text and its folder's name the label, name the folder of the folders"
        )
    reads = {"csv": _table, "tsv": _table, "jsonl": _jsonl, "text": _plain, "conll": _sentences}
    return Source(
        str(path),
        lambda: sha256(path),
        lambda: _guarded(path, data, reads[name](path, data, labelled, name)),
        unit="line" if name == "conll" else "row",
    )


def document_source(path: Path, data: DataConfig) -> Source:
    """A file whose rows are whole documents; `data.documents` says what ends one of a text file.
    Of a folder each file is a document.

    Lines of a document end with a line feed. An empty document is a row without text.

    Raises:
        InputError: as `file_source`.
    """
    if path.is_dir():
        return folder_source(path, data, labelled=False)
    source = file_source(path, data, labelled=False)
    if _format(path, data) != "text":
        return source
    read = {"blank_line": _paragraphs, "line": _document_lines, "file": _whole}[data.documents]
    return replace(source, rows=lambda: _guarded(path, data, read(path, data)))


def words_source(path: Path, ending: str, data: DataConfig) -> Source:
    """The words of the documents of `path`: a text file with the same lines, or one for each row.

    Raises:
        InputError: as `file_source`.
    """
    documents = data.documents if _format(path, data) == "text" else "line"
    beside = replace(data, format="text", documents=documents)
    return document_source(path.with_name(path.name + ending), beside)


def _format(path: Path, data: DataConfig) -> str:
    if data.format != "auto":
        return data.format
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _FORMATS:
        raise InputError(
            f"{path}: the name does not tell the format; expected an ending of "
            f"{', '.join(_FORMATS)} (each also with .gz), or data.format"
        )
    return _FORMATS[suffix]


def _guarded(path: Path, data: DataConfig, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except (UnicodeError, OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, data.encoding) from None


def _plain(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    return (row for row in _document_lines(path, data) if row.fault or row.text.strip())


def _sentences(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    return conll.sentences(str(path), lines(path, data), data, labelled=labelled)


def _document_lines(path: Path, data: DataConfig) -> Iterator[Row]:
    for number, line in enumerate(lines(path, data), 1):
        yield Row(number, line.rstrip("\n"), fault=None if line else too_long(data))


def _whole(path: Path, data: DataConfig) -> Iterator[Row]:
    with open_text(path, data.encoding) as file:
        text = file.read(data.max_row_bytes + 1)
    whole = not beyond(text, data.max_row_bytes)
    yield Row(1, text if whole else "", fault=None if whole else too_long(data))


def _paragraphs(path: Path, data: DataConfig) -> Iterator[Row]:
    limit = data.max_row_bytes
    parts: list[str] = []
    begin, size = 0, 0

    def document() -> Row:
        text = "".join(parts)
        whole = size <= limit and not beyond(text, limit)
        return Row(begin, text if whole else "", fault=None if whole else too_long(data))

    for number, line in enumerate(lines(path, data), 1):
        if line.isspace():
            if size:
                yield document()
            parts, size = [], 0
            continue
        begin = begin if size else number
        size += len(line) or limit + 1  # "": a line that is too long
        if size <= limit:
            parts.append(line)
        elif data.on_bad_row != "drop":
            break
    if size:
        yield document()


class _Feed:
    """Lines of the rows of a table, to be taken in turns: a row, then `faulty`."""

    def __init__(self, lines: Iterable[str], limit: int):
        self._lines, self._limit = iter(lines), limit
        self._size, self._faulty = 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._size += len(line)
        if self._size > self._limit:  # of many lines: a quote that nothing closes
            self._faulty = True
            raise StopIteration
        self._faulty |= not line
        return line

    def faulty(self) -> bool:
        """Whether the row that was taken last is too long."""
        faulty, self._size, self._faulty = self._faulty, 0, False
        return faulty


def _table(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts over 131,072 characters
    expected = Dialect(",", '"') if name == "csv" else Dialect("\t", "")

    def fits(header: list[str]) -> bool:
        try:
            return bool(columns_of(str(path), header, data, labelled))
        except InputError:
            return False

    dialect = dialect_of(lambda: lines(path, data), expected.delimiter, data, fits)
    if dialect != expected:
        _LOG.info("%s: read with %s", path, dialect)
    feed = _Feed(itertools.islice(lines(path, data), dialect.skipped, None), data.max_row_bytes)
    reader = dialect.reader(feed)
    number = 0
    try:
        columns = data.columns or next((fields for fields in reader if fields), [])
        at = [
            columns.index(c) if c else None for c in columns_of(str(path), columns, data, labelled)
        ]
        feed.faulty()
        for number, fields in enumerate(reader, 1):
            if feed.faulty():
                yield Row(number, None, fault=too_long(data))
                continue
            if not fields:
                continue
            values = [fields[i] if i is not None and i < len(fields) else None for i in at]
            surplus = len(fields) > len(columns) and any(fields[len(columns) :])
            fault = f"more than {len(columns)} fields" if surplus else None
            yield row_of(number, values, data, fault)
    except csv.Error as error:
        line = reader.line_num + dialect.skipped
        found = too_long(data) if feed.faulty() else f"not valid {name}: {error}"
        raise InputError(
            f"{path}, row {number + 1} (up to line {line}): {found}; look for a quote "
            f"({dialect.quote}) that is not closed, or not doubled inside a quoted field; where "
            "quotes are text, set data.quoting: none"
        ) from None


def _jsonl(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    with open_text(path, data.encoding) as file:
        array = JsonText(file, data.max_row_bytes).peek() == "["
    records = _json_array(path, data) if array else _json_lines(path, data)
    yield from rows_of(str(path), records, data, labelled)


def _json_lines(path: Path, data: DataConfig) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(lines(path, data), 1):
        if not line:
            yield number, too_long(data)
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}: not JSON: {error}; expected one object on every line, or "
                "one array of objects in the whole file"
            ) from None
        yield number, _object(f"{path}, line {number}", record)


def _json_array(path: Path, data: DataConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path, data.encoding) as file:
        try:
            for number, record in enumerate(JsonText(file, data.max_row_bytes).whole_array(), 1):
                yield number, _object(f"{path}, item {number}", record)
        except (UnicodeError, InputError):
            raise
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}; expected one array of objects") from None


def _object(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        found = type(record).__name__ if isinstance(record, list) else repr(str(record)[:40])
        raise InputError(f"{where}: found {found}, expected an object with columns")
    return record
