"""Sentences out of CoNLL files: a word and its tag on a line, a blank line between sentences."""

from collections.abc import Iterable, Iterator

from jaxllm.config_fields import DataConfig
from jaxllm.data.lines import too_long
from jaxllm.data.rows import Row, columns_of
from jaxllm.errors import InputError

_DOCUMENT = "-DOCSTART-"  # a line that stands between documents in the files of CoNLL-2003


def sentences(
    where: str, lines: Iterable[str], data: DataConfig, *, labelled: bool
) -> Iterator[Row]:
    """Rows whose text is a list of words and whose label is the list of their tags.

    Columns are separated by tabs or, in a line without one, by spaces. The words are in column
    ``data.text`` of ``data.columns`` and the tags in ``data.label``; without ``data.columns`` in
    the first and the last. A row's number is that of its first line, so that of word i is i more;
    a row with a fault has the number of the faulty line.

    Raises:
        InputError: there is no column for the tags.
    """
    word_at, tag_at, width = 0, -1, 0
    if data.columns is not None:
        columns_of(where, data.columns, data, labelled)  # each is there once
        word_at, width = data.columns.index(data.text), len(data.columns)
        tag_at = data.columns.index(data.label_columns[0]) if labelled else 0
    words: list[str] = []
    tags: list[str] = []
    fault: tuple[int, str] | None = None

    def row(end: int) -> Row:
        number, reason = fault or (end - len(words), None)
        return Row(number, words, label=tags if labelled else None, fault=reason)

    number, size = 0, 0
    for number, line in enumerate(lines, 1):
        fields = _fields(line)
        size = size + len(line) if fields else 0
        if size > data.max_row_bytes or not line:  # "": a line that is too long
            words, tags, fault = [""], [], (number, too_long(data))
            if data.on_bad_row != "drop":
                break
            continue
        if not fields or fields[0] == _DOCUMENT:
            if words:
                yield row(number)
            words, tags, fault = [], [], None
            continue
        width = width or len(fields)
        if labelled and width == 1:
            raise InputError(
                f"{where}, line {number}: found one column, expected a word and its tag, with a "
                "tab or spaces between"
            )
        if len(fields) != width and fault is None:
            fault = (number, f"other than {width} columns")
        if len(fields) == width:
            tags.append(fields[tag_at])
        words.append(fields[word_at] if len(fields) == width else "")
    if words:
        yield row(number + 1)


def _fields(line: str) -> list[str]:
    """The columns of a line; none if it is blank."""
    if not line.strip():
        return []
    return [field.strip(" \r\n") for field in line.split("\t")] if "\t" in line else line.split()
