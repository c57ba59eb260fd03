"""Rows of text and label, and where they come from."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxllm.config.fields import DataConfig
from jaxllm.data.lines import beyond, too_long
from jaxllm.errors import InputError

# The fields of DataConfig that say how a file is read.
FORM = ("format", "encoding", "delimiter", "quoting", "columns", "max_row_bytes")
# Rows read, and tokenized, at a time; fewer where they have more characters than that.
CHUNK, CHARACTERS = 1000, 1 << 22


class Row(NamedTuple):
    """One row as it was found.

    Attributes:
        number: from 1, header not counted; blank lines of a file are left out but counted.
        text, pair, label: what the columns hold; None where there is nothing. Of several label
            columns a list.
        fault: why the row cannot be used, where its columns could not be told apart.
        choices: what ``data.choices`` hold, in a list, where there are such columns.
        lines: of a sentence in a CoNLL file, the number of each word's line.
        elsewhere: the row is of the other part, see `holdout`; only its label may be learned.
        file: of a folder of texts, the row's own file, as messages name it.
    """

    number: int
    text: Any
    pair: Any = None
    label: Any = None
    fault: str | None = None
    choices: Any = None
    lines: list[int] | None = None
    elsewhere: bool = False
    file: str = ""


@dataclass(frozen=True)
class Source:
    """One file, or one split of a Hub data set.

    Attributes:
        name: for messages.
        fingerprint: gives a string that is another one whenever the content is.
        rows: gives the rows; InputError where they cannot be read.
        label_names: in the order of their ids, where the data set itself says so.
        unit: what the numbers of its rows count.
        empty: with data.dev_fraction: no row of it is of the part.
    """

    name: str
    fingerprint: Callable[[], str]
    rows: Callable[[], Iterator[Row]]
    label_names: list[str] | None = None
    unit: str = "row"
    empty: bool = False


def text_hash(*texts: str) -> int:
    """64 bits that are the same for the same texts, but for spaces around each."""
    joined = "\0".join(text.strip() for text in texts).encode()
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def chunk_of(texts: Iterator[str]) -> list[str]:
    """The next of `texts` that are tokenized at a time; none at the end."""
    chunk: list[str] = []
    size = 0
    while len(chunk) < CHUNK and size < CHARACTERS and (text := next(texts, None)) is not None:
        chunk.append(text)
        size += len(text)
    return chunk


def columns_of(
    where: str, columns: Iterable[str], data: DataConfig, labelled: bool
) -> list[str | None]:
    """The columns of text, pair, label and choices, after a check that each is there once."""
    keys: list[tuple[str, str | None]] = [
        ("text", data.text),
        ("text_pair", data.text_pair),
        *(("label", column if labelled else None) for column in data.label_columns),
        *(("choices", column) for column in data.choices or []),
    ]
    there = list(columns)
    for key, column in keys:
        if column is not None and there.count(column) != 1:
            found = "no column" if column not in there else f"{there.count(column)} columns"
            raise InputError(
                f"{where}: {found} {column!r} (data.{key}); the columns there are "
                f"{', '.join(map(repr, there))}; name one of them, or give data.columns if the "
                "file has no header row"
            )
    return [column for _, column in keys]


def row_of(number: int, values: list[Any], data: DataConfig, fault: str | None = None) -> Row:
    """A row of what the columns of `columns_of` hold."""
    text, pair, *others = values
    count = len(data.label_columns)
    labels, choices = others[:count], others[count:]
    label = labels if isinstance(data.label, list) else labels[0]
    if data.choices is None:
        return Row(number, text, pair, label, fault)
    # One column holds the list of them, several hold one each.
    return Row(number, text, pair, label, fault, choices[0] if len(choices) == 1 else choices)


def rows_of(
    where: str,
    records: Iterator[tuple[int, dict[str, Any] | str]],
    data: DataConfig,
    labelled: bool,
) -> Iterator[Row]:
    """Rows out of dicts, or of why there is none; a column that none of the first rows has is taken
    to be misnamed.
    """
    head: list[tuple[int, dict[str, Any] | str]] = []
    there: dict[str, None] = {}
    columns: list[str | None] | None = None
    while columns is None and (record := next(records, None)):
        head.append(record)
        there |= dict.fromkeys(record[1] if isinstance(record[1], dict) else ())
        with contextlib.suppress(InputError):
            columns = columns_of(where, there, data, labelled)
        if len(head) == CHUNK:
            break
    if columns is None and there:
        columns = columns_of(where, there, data, labelled)
    for number, found in itertools.chain(head, records):
        if isinstance(found, str):
            yield Row(number, None, fault=found)
        else:
            assert columns is not None
            values = [found.get(column) if column else None for column in columns]
            # Lines of files are not that long; rows of the Hub can be.
            whole = not any(beyond(value, data.max_row_bytes) for value in values)
            yield row_of(number, values, data, None if whole else too_long(data))
