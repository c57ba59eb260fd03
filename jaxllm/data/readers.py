"""Rows out of csv, tsv, jsonl, text and CoNLL files, each also .gz, through the `datasets` library.

Lines come from its text reader, which streams and unpacks; the fields are taken apart here, not by
pandas or Arrow, because those guess types (the text "NA" becomes a missing value, "1.0" a number, a
date a timestamp) and lose the row number that an error message needs.
"""

import csv
import glob
import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from jaxllm.config_fields import DataConfig
from jaxllm.data import conll
from jaxllm.data.rows import CHUNK, Row, Source, columns_of, row_of, rows_of
from jaxllm.errors import InputError

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".conll": "conll",
}


def file_source(path: Path, data: DataConfig, *, labelled: bool) -> Source:
    """A file of ``data.format``.

    Raises:
        InputError: the file is missing, empty, of an unknown format, or text where a label is due.
    """
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
            "tab, label on every line set data.format: tsv and data.columns: [text, label]"
        )
    reads = {"csv": _table, "tsv": _table, "jsonl": _jsonl, "text": _plain, "conll": _sentences}
    return Source(
        str(path),
        lambda: _sha256(path),
        lambda: _guarded(path, reads[name](path, data, labelled, name)),
        unit="line" if name == "conll" else "row",
    )


def document_source(path: Path, data: DataConfig) -> Source:
    """A file whose rows are whole documents; `data.documents` says what ends one of a text file.

    Lines of a document end with a line feed. An empty document is a row without text.

    Raises:
        InputError: as `file_source`.
    """
    source = file_source(path, data, labelled=False)
    if _format(path, data) != "text":
        return source
    read = _paragraphs if data.documents == "blank_line" else _document_lines
    return replace(source, rows=lambda: _guarded(path, read(path)))


def words_source(path: Path, data: DataConfig) -> Source:
    """The words of the documents of `path`: a text file with the same lines, or one for each row.

    Raises:
        InputError: as `file_source`.
    """
    assert data.words is not None
    documents = data.documents if _format(path, data) == "text" else "line"
    beside = replace(data, format="text", documents=documents)
    return document_source(path.with_name(path.name + data.words), beside)


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


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _guarded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}; is the copy complete?") from None


def _not_utf8(path: Path) -> InputError:
    offset = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                found = f"byte {line[error.start]:#04x} at offset {offset + error.start}"
                return InputError(
                    f"{path}, line {number}: {found} is not UTF-8; save the file as UTF-8 "
                    f"(for example: iconv -f latin1 -t utf-8 {path.name})"
                )
            offset += len(line)
    return InputError(f"{path}: is not UTF-8; save the file as UTF-8")


def _texts(path: Path, sample_by: str) -> Iterator[str]:
    """The lines of a file with their line ends, or the whole of it ("document")."""
    from datasets import load_dataset

    stream = load_dataset(
        "text",
        data_files=[glob.escape(str(path.absolute()))],
        split="train",
        streaming=True,
        encoding="utf-8-sig",
        keep_linebreaks=True,
        sample_by=sample_by,
    )
    for table in stream.with_format("arrow").iter(batch_size=CHUNK):
        yield from table["text"].to_pylist()


def _plain(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    for number, line in enumerate(_texts(path, "line"), 1):
        if line.strip():
            yield Row(number, line.rstrip("\n"))


def _sentences(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    return conll.sentences(str(path), _texts(path, "line"), data, labelled=labelled)


def _document_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_texts(path, "line"), 1):
        yield Row(number, line)


def _paragraphs(path: Path) -> Iterator[Row]:
    lines: list[str] = []
    begin = 0
    for number, line in enumerate(_texts(path, "line"), 1):
        if line.strip():
            begin = begin if lines else number
            lines.append(line)
        elif lines:
            yield Row(begin, "".join(lines))
            lines = []
    if lines:
        yield Row(begin, "".join(lines))


def _table(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts over 131,072 characters
    lines = _texts(path, "line")
    if name == "csv":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    number = 0
    try:
        columns = data.columns or next((fields for fields in reader if fields), [])
        at = [
            columns.index(c) if c else None for c in columns_of(str(path), columns, data, labelled)
        ]
        for number, fields in enumerate(reader, 1):
            if not fields:
                continue
            values = [fields[i] if i is not None and i < len(fields) else None for i in at]
            surplus = len(fields) > len(columns) and any(fields[len(columns) :])
            fault = f"more than {len(columns)} fields" if surplus else None
            yield row_of(number, values, data, fault)
    except csv.Error as error:
        raise InputError(
            f"{path}, row {number + 1} (up to line {reader.line_num}): not valid {name}: {error}; "
            'look for a quote (") that is not closed, or not doubled inside a quoted field'
        ) from None


def _jsonl(path: Path, data: DataConfig, labelled: bool, name: str) -> Iterator[Row]:
    with _open(path) as file:
        array = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    records = _json_array(path) if array else _json_lines(path)
    return rows_of(str(path), records, data, labelled)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_texts(path, "line"), 1):
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


def _json_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        records = json.loads("".join(_texts(path, "document")))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise InputError(f"{path}: not JSON: {error}; expected one array of objects") from None
    for number, record in enumerate(records, 1):
        yield number, _object(f"{path}, item {number}", record)


def _object(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{where}: found {str(record)[:40]!r}, expected an object with columns")
    return record
