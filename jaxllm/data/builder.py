"""One pass over the rows of a split: check, tokenize in parallel, store."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.bad_rows import BadRows
from jaxllm.data.cache import Store
from jaxllm.data.label_cells import unnamed
from jaxllm.data.labels import Labels
from jaxllm.data.rows import CHARACTERS, CHUNK, Row, Source, text_hash
from jaxllm.data.threads import tokenized
from jaxllm.data.tokenizer import Encoded, Encoder
from jaxllm.errors import InputError

_SHOWN = 5  # rows in a remark


class _Good(NamedTuple):
    number: int
    texts: list[str]
    pairs: list[str]  # as many as there are texts; none: single texts
    label: Any
    hash: int
    file: str


class _Bad(NamedTuple):
    number: int
    reason: str
    file: str


class _Elsewhere(NamedTuple):
    """A row of the other part."""

    label: Any


class _Chunk(NamedTuple):
    source: Source
    rows: list[_Good | _Bad | _Elsewhere]
    texts: list[_Good]  # those to tokenize: none where no more examples are wanted


class Builder:
    """Rows of `sources` to arrays in a store.

    Args:
        data: columns, lengths, and what to do with bad rows.
        split: "train" or "dev", for messages.
        labels: reads the label column, and learns the names if they are not given.
        choices: texts of a row, each with one of its choices; 0 = rows have no choices.
        limit: at most so many examples; None = all. Names are learned from the rows behind it too,
            so that ids do not depend on it, except from a stream.
    """

    def __init__(
        self,
        data: DataConfig,
        split: str,
        sources: list[Source],
        encoder: Encoder,
        labels: Labels,
        limit: int | None,
        choices: int = 0,
    ):
        self._data, self._split, self._sources = data, split, sources
        self._encoder, self._labels, self._limit = encoder, labels, limit
        self._choices = choices
        self._lengths = [np.zeros(1, np.int64)]
        self._read = self._kept = self._truncated = 0
        self._bad = BadRows(data, split, sources[0].unit)
        self._headers: list[str] = []  # rows whose label is the name of its column
        self._learn_on = labels.learning and not data.streaming

    def run(self, store: Store) -> dict[str, Any]:
        """Appends the arrays of `Examples` to `store`.

        Gives ``names`` of the labels, the ``report`` of the rows, and ``remarks`` on what looks
        wrong about labels that were learned. In memory are the few chunks that are under way, and
        one number an example.

        Raises:
            InputError: a row that cannot be used where that stops the run, or no row that can.
        """

        def take(chunk: _Chunk, encoded: Encoded | None) -> None:
            self._take(chunk, encoded, store)

        tokenized(self._chunks(), self._encode, take, workers=self._data.workers)
        self._raise_if_stopped()
        if self._kept == 0:
            raise InputError(
                f"data.{self._split}: no row is left: {self._bad}; expected at least one that "
                "can be used: correct the file, or give another"
            )
        store.append("offsets", np.cumsum(np.concatenate(self._lengths)))
        array, names = self._labels.finish()
        self._check_names(array, names)
        if array is not None:
            store.append("labels", array)
        report = {
            "read": self._read,
            "kept": self._kept,
            "dropped": self._bad.counts,
            "truncated": self._truncated,
        }
        return {"names": names, "report": report, "remarks": self._remarks(names)}

    @property
    def _full(self) -> bool:
        return self._limit is not None and self._kept >= self._limit

    def _chunks(self) -> Iterator[_Chunk]:
        for source, rows in self._checked_rows():
            wanted = not self._full and not self._bad.stop
            yield _Chunk(source, rows, [r for r in rows if wanted and isinstance(r, _Good)])
            if self._full and not self._learn_on:
                return

    def _checked_rows(self) -> Iterator[tuple[Source, list[_Good | _Bad | _Elsewhere]]]:
        for source in self._sources:
            rows: list[_Good | _Bad | _Elsewhere] = []
            empty, size = True, 0
            for row in source.rows():
                empty = False
                rows.append(self._checked(row))
                size += sum(len(text) for text in (row.text, row.pair) if isinstance(text, str))
                if len(rows) == CHUNK or size >= CHARACTERS:
                    yield source, rows
                    rows, size = [], 0
            if empty:
                raise InputError(f"{source.name}: no rows; there is a header or blank lines only")
            if rows:
                yield source, rows

    def _checked(self, row: Row) -> _Good | _Bad | _Elsewhere:
        if row.elsewhere:
            return _Elsewhere(self._labels.read(row.label)[0] if self._learn_on else None)
        fault = row.fault or text_fault(row.text, "text")
        if fault is None and self._choices:
            fault = choices_fault(row, self._choices)
        elif fault is None and self._data.text_pair is not None:
            fault = text_fault(row.pair, "second text")
        if fault is not None:
            return _Bad(row.number, fault, row.file)
        label, fault = self._labels.read(row.label)
        if fault is not None:
            return _Bad(row.number, fault, row.file)
        if self._choices:
            pairs = [second_text(row.pair, choice) for choice in row.choices]
            content = text_hash(row.text, *pairs)
            texts = [row.text] * self._choices
            return _Good(row.number, texts, pairs, label, content, row.file)
        pairs = [] if self._data.text_pair is None else [row.pair]
        content = text_hash(row.text, *pairs)
        return _Good(row.number, [row.text], pairs, label, content, row.file)

    def _encode(self, chunk: _Chunk) -> Encoded | None:
        if not chunk.texts:
            return None
        pairs = [pair for row in chunk.texts for pair in row.pairs]
        texts = [text for row in chunk.texts for text in row.texts]
        return self._encoder.encode(texts, pairs or None)

    def _take(self, chunk: _Chunk, encoded: Encoded | None, store: Store) -> None:
        """Adds a chunk's examples; once there are enough of them, only learns its labels."""
        if encoded is not None:
            shape = (-1, self._choices or 1)
            full_lengths = encoded.full_lengths.reshape(shape)
            lengths = encoded.lengths.reshape(shape)
        kept: list[int] = []  # positions among the good rows
        numbers: list[int] = []
        hashes: list[int] = []
        good = -1
        for row in chunk.rows:
            good += isinstance(row, _Good)
            if isinstance(row, _Elsewhere):
                if row.label is not None:  # the names are those of both parts
                    self._labels.learn(row.label)
                continue
            if self._full:
                if self._learn_on and isinstance(row, _Good):
                    self._labels.learn(row.label)
                    self._look(chunk.source.name, row)
                continue
            self._read += 1
            if isinstance(row, _Bad):
                self._bad.add(chunk.source.name, row.number, row.reason, note=row.file)
            elif encoded is None:  # the run stops; only the bad rows still count
                continue
            elif not full_lengths[good].all():
                reason = "text without a token"
                self._bad.add(chunk.source.name, row.number, reason, note=row.file)
            elif not lengths[good].all():
                reason = f"longer than data.max_length={self._data.max_length}"
                self._bad.add(chunk.source.name, row.number, reason, "truncation", row.file)
            else:
                self._kept += 1
                self._truncated += bool((full_lengths[good] > lengths[good]).any())
                self._labels.append(row.label)
                self._look(chunk.source.name, row)
                kept.append(good)
                numbers.append(row.number)
                hashes.append(row.hash)
        if encoded is not None and kept:
            stays = np.zeros(lengths.shape, bool)
            stays[kept] = True
            stays_token = np.repeat(stays.ravel(), encoded.lengths)
            store.append("tokens", encoded.tokens[stays_token])
            store.append("type_ids", encoded.type_ids[stays_token])
            store.append("rows", np.array(numbers, np.int64))
            store.append("hashes", np.array(hashes, np.uint64))
            self._lengths.append(lengths[kept].ravel())
        if self._data.streaming:  # a stream may have no end to wait for
            self._raise_if_stopped()

    def _look(self, source: str, row: _Good) -> None:
        """Remembers a header that stands among the rows, as where files were put together."""
        labels = [row.label] if isinstance(row.label, str) else row.label
        if self._labels.learning and self._data.label in labels:
            self._headers.append(f"{source}: row {row.number}")

    def _remarks(self, names: list[str]) -> list[str]:
        if not self._labels.learning:
            return []
        found = self._labels.remarks(names)
        if self._headers:
            shown, more = "; ".join(self._headers[:_SHOWN]), len(self._headers) - _SHOWN
            found.append(
                f"one of the labels is the column's own name, {self._data.label!r}, as where files "
                f"were put together with their headers ({shown}"
                f"{f' and {more} more' if more > 0 else ''}); remove these rows"
            )
        return found

    def _raise_if_stopped(self) -> None:
        names = self._labels.given or []
        known = f"; the labels are {', '.join(names)}" if names else ""
        if unnamed(names):
            known += ", which are no names: give them in this order as data.labels"
        self._bad.raise_if_stopped(self._read, known)

    def _check_names(self, array: np.ndarray | None, names: list[str]) -> None:
        """Learned names are of use only if there is something to tell apart."""
        least = 1 if array is not None and array.ndim == 2 else 2
        if self._labels.learning and len(names) < least:
            raise InputError(
                f"data.{self._split}: column {self._data.label!r} (data.label) has "
                f"{f'the label {names[0]!r} only' if names else 'no label'}; expected at least "
                f"{least}, or give all names as data.labels"
            )


def text_fault(text: Any, column: str) -> str | None:
    """Why `text` cannot be tokenized; None where it can."""
    if text is None or text == "":
        return f"missing {column}"
    if not isinstance(text, str):
        return f"{column} of type {type(text).__name__}"
    if text.isspace():
        return f"missing {column}"
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a character: "\ud83d"
        return f"{column} that is not valid Unicode"
    return None


def choices_fault(row: Row, count: int) -> str | None:
    """Why a row is no question with `count` choices; None where it is one."""
    if not isinstance(row.choices, list) or len(row.choices) != count:
        found = len(row.choices) if isinstance(row.choices, list) else "no list of"
        return f"{found} choices, not {count}"
    if row.pair not in (None, "") and (fault := text_fault(row.pair, "second text")):
        return fault
    return next((f for choice in row.choices if (f := text_fault(choice, "choice"))), None)


def second_text(start: str | None, choice: str) -> str:
    """A choice as it stands behind the first text; `start` is how all choices of a row begin."""
    return f"{start} {choice}" if start else choice
