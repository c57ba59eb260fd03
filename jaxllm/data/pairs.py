"""Texts that belong together: an anchor, its positive and perhaps a negative, in one row."""

import functools
import logging
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxllm.config_fields import DataConfig
from jaxllm.data.corpus import Examples, ReadReport, load_examples
from jaxllm.data.packing import Rows, fill_packed, slots
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """n groups of G tokenized texts; with what a loader asks of them (see `corpus.Examples`).

    A group stays in one row, where each of its texts is a segment of its own.

    Attributes:
        tokens: int32[total], of the n * G texts, group after group: anchor, positive and, where
            G = 3, a negative.
        offsets: int64[n * G + 1]; text i is ``tokens[offsets[i]:offsets[i + 1]]``.
        text_ids: int32[n * G], a number for the content of each text: equal for equal texts.
        scores: float32[n], how alike anchor and positive are; None where there are no scores.
        rows: int64[n], number of the row in its file: from 1, header not counted.
        report: what became of the rows that were read.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    text_ids: np.ndarray
    scores: np.ndarray | None
    rows: np.ndarray
    report: ReadReport

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """G, the texts of a group."""
        return len(self.text_ids) // len(self)

    @property
    def lengths(self) -> np.ndarray:
        """int64[n]: tokens of each group."""
        return np.diff(self.offsets[:: self.width])

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        """int64[m]: tokens of the groups `members`, without going through all."""
        first = members * self.width
        return self.offsets[first + self.width] - self.offsets[first]

    @functools.cached_property
    def fingerprint(self) -> int:
        """A checksum of what is trained on."""
        return zlib.crc32(bytes([self.width]), self._texts.fingerprint)

    @functools.cached_property
    def _texts(self) -> Examples:
        """All texts, each an example, with its id as label."""
        types, rows = np.zeros(len(self.tokens), np.uint8), np.arange(1, len(self.text_ids) + 1)
        return Examples(self.tokens, types, self.offsets, self.text_ids, rows, self.report)

    def slots(self, row_length: int, *, packing: bool) -> int:
        """P, the groups that a row holds at most."""
        return max(1, slots(row_length) // self.width) if packing else 1

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool, epoch: int
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch of `rows`.

        ``input_ids``, ``segment_ids``, … as `packing.fill_packed` gives them for the texts, so that
        text g of the row's group p has segment number p * G + g + 1 and that place in
        ``head_positions`` [B, P * G]; ``text_ids`` int32 [B, P * G]; ``label_weights`` float32
        [B, P], 0 where there is no group.
        """
        G = self.width
        members = (rows.members[:, None] * G + np.arange(G)).ravel()
        batch = fill_packed(
            self._texts,
            Rows(members, rows.starts * G),
            row_length=row_length,
            max_per_row=self.slots(row_length, packing=packing) * G,
            height=height,
        )
        batch["text_ids"] = batch.pop("labels")
        batch["label_weights"] = batch["label_weights"][:, ::G]
        return batch


def text_length(data: DataConfig) -> int:
    """Tokens of a text at most: all texts of a group fit in a row of ``data.max_length``."""
    return data.max_length // (2 if data.text_negative is None else 3)


class _Group(NamedTuple):
    texts: tuple[np.ndarray, ...]  # tokens of each
    score: float
    row: int


def load_pairs(data: DataConfig, split: str, tokenizer: "PreTrainedTokenizerFast") -> Pairs:
    """The groups of ``split`` "train" or "dev".

    Train: the texts in ``data.text``, ``data.text_pair`` and, if set, ``data.text_negative``, of
    the rows whose ``data.score`` is at least ``data.positive_from``, where that is set. Dev: anchor
    and positive, with the scores in ``data.score``, where that is set. A text is cut to
    `text_length`. The tokens are in memory.

    Raises:
        InputError: a file, column, row or score is not as it should be, or no row is left.
    """
    training, least = split == "train", data.positive_from
    scored = data.score is not None and (not training or least is not None)
    columns = {"data.text": data.text, "data.text_pair": data.text_pair}
    if training and data.text_negative is not None:
        columns["data.text_negative"] = data.text_negative
    files = data.train if training else data.dev
    groups: list[_Group] = []
    read = truncated = 0
    # File by file, as the number of a row tells it from others in its file only.
    for part in [replace(data, train=[file], dev=[file]) for file in files] or [data]:
        found = [
            _load_column(part, split, tokenizer, key, column, scored and key == "data.text")
            for key, column in columns.items()
        ]
        read += max(texts.report.read for texts in found)
        truncated += sum(texts.report.truncated for texts in found)
        groups += _joined(found)
    groups = groups[: data.max_train_examples if training else data.max_dev_examples]
    dropped = {"a text or the score cannot be used": read - len(groups)}
    kept = groups
    if training and least is not None:
        kept = [group for group in groups if group.score >= least]
        dropped[f"score below {least:g}"] = len(groups) - len(kept)
    if not kept:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.items())
        raise InputError(f"data.{split}: no row is left of {read}: {reasons}")
    _LOG.info("data.%s: %d of %d rows are pairs to use", split, len(kept), read)
    return Pairs(
        *_concatenated([text for group in kept for text in group.texts]),
        np.array([group.score for group in kept], np.float32) if scored else None,
        np.array([group.row for group in kept], np.int64),
        ReadReport(read, len(kept), {r: n for r, n in dropped.items() if n}, truncated),
    )


def _load_column(
    data: DataConfig, split: str, tokenizer: Any, key: str, column: str | None, scored: bool
) -> Examples:
    """One column's texts, each by itself; with the score as label if `scored`."""
    assert column is not None
    single = replace(data, text=column, text_pair=None, max_length=text_length(data))
    problem = None
    if scored:
        assert data.score is not None
        single, problem = replace(single, label=data.score), "regression"
    try:
        return load_examples(single, split, tokenizer, problem_type=problem, labels=None)[0]
    except InputError as error:  # the names of the keys are those of a text with a label
        message = str(error).replace("(data.text)", f"({key})")
        raise InputError(message.replace("(data.label)", "(data.score)")) from None


def _joined(columns: list[Examples]) -> Iterator[_Group]:
    """The rows that all columns of one file have kept."""
    common = functools.reduce(np.intersect1d, [texts.rows for texts in columns])
    scores = columns[0].labels
    places = zip(*(np.searchsorted(texts.rows, common) for texts in columns), strict=True)
    for row, at in zip(common, places, strict=True):
        tokens = (
            texts.tokens[texts.offsets[i] : texts.offsets[i + 1]]
            for texts, i in zip(columns, at, strict=True)
        )
        yield _Group(tuple(tokens), math.nan if scores is None else float(scores[at[0]]), int(row))


def _concatenated(texts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, offsets, text_ids) of `Pairs`."""
    numbers: dict[bytes, int] = {}
    ids = [numbers.setdefault(text.tobytes(), len(numbers)) for text in texts]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return np.concatenate(texts), offsets, np.array(ids, np.int32)
