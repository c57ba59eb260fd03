"""Texts that are alike: an anchor, its positive, and perhaps a negative."""

import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxllm.config.fields import ContrastiveConfig, DataConfig
from jaxllm.data.corpus import Examples, ReadReport, load_examples, whole_sources
from jaxllm.data.groups import Groups
from jaxllm.data.holdout import Holdout, Key, content_of, hold_out
from jaxllm.data.packing import Rows
from jaxllm.data.rows import Source, text_hash
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs(Groups):
    """n groups of 2 or 3 texts: anchor, positive and, in third place, a negative.

    Attributes:
        labels: float32[n], how alike anchor and positive are; None where there are no scores.
        text_ids: int32[n * G], a number for the content of each text: equal for equal texts.
    """

    text_ids: np.ndarray = field(kw_only=True)

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch of `rows`.

        ``input_ids``, ``segment_ids``, ``token_type_ids`` int32 [B, T], ``head_positions`` and
        ``text_ids`` int32 [B, P * G], ``label_weights`` float32 [B, P], 0 for no group.
        """
        batch = self.fill_texts(
            rows, self.text_ids, row_length=row_length, height=height, packing=packing
        )
        batch["text_ids"] = batch.pop("labels")
        return batch


def text_length(data: DataConfig, contrastive: ContrastiveConfig) -> int:
    """Tokens of a text at most: all texts of a group fit in a row of ``data.max_length``."""
    return data.max_length // (2 if contrastive.negative is None else 3)


class _Group(NamedTuple):
    texts: tuple[np.ndarray, ...]  # tokens of each
    score: float
    row: int
    hash: int  # of anchor and positive
    anchor: int  # hash of the anchor


def load_pairs(
    data: DataConfig,
    contrastive: ContrastiveConfig,
    split: str,
    tokenizer: "PreTrainedTokenizerFast",
    prompt: str = "",
) -> Pairs:
    """The groups of ``split`` "train" or "dev"; all texts begin with `prompt`.

    Train: the texts in ``data.text``, ``data.text_pair`` and, if set, ``contrastive.negative``, of
    the rows whose ``contrastive.score`` is at least ``contrastive.positive_from``, where that is
    set. Dev: anchor and positive, with the scores in ``contrastive.score``, where that is set. A
    text is cut to `text_length`. The tokens are in memory.

    Raises:
        InputError: a file, column, row or score is not as it should be, or no row is left.
    """
    training, least = split == "train", contrastive.positive_from
    score = contrastive.score if not training or least is not None else None
    columns = {"data.text": data.text, "data.text_pair": data.text_pair}
    if training and contrastive.negative is not None:
        columns["contrastive.negative"] = contrastive.negative
    files = data.files(split)
    held = None
    whole = data
    if data.dev_fraction:
        held = _held_out(data)
        # All rows are read, and those of the other part left out afterwards.
        whole = replace(
            data,
            dev_fraction=0.0,
            dev_split=data.train_split,
            max_train_examples=None,
            max_dev_examples=None,
        )
    length = text_length(data, contrastive)
    whole = replace(whole, text_pair=None, max_length=length)
    groups: list[_Group] = []
    read = truncated = 0
    # File by file, as the number of a row tells it from others in its file only.
    for part in [replace(whole, train=[file], dev=[file]) for file in files] or [whole]:
        found = [
            _load_column(
                part, split, tokenizer, key, column, score if key == "data.text" else None, prompt
            )
            for key, column in columns.items()
        ]
        read += max(texts.report.read for texts in found)
        truncated += sum(texts.report.truncated for texts in found)
        groups += _joined(found)
    if held is not None:
        own = [group for group in groups if not held.is_elsewhere((group.anchor, 0), split)]
        read -= len(groups) - len(own)
        groups = own
    groups = groups[: data.limit(split)]
    dropped = {"a text or the score cannot be used": read - len(groups)}
    kept = groups
    if training and least is not None:
        kept = [group for group in groups if group.score >= least]
        dropped[f"score below {least:g}"] = len(groups) - len(kept)
    if not kept:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in dropped.items())
        raise InputError(f"data.{split}: no row is left of {read}: {reasons}")
    _LOG.info("data.%s: %d of %d rows are pairs to use", split, len(kept), read)
    texts = [text for group in kept for text in group.texts]
    tokens = np.concatenate(texts)
    numbers: dict[bytes, int] = {}
    return Pairs(
        tokens=tokens,
        type_ids=np.zeros(len(tokens), np.uint8),
        offsets=np.cumsum([0, *map(len, texts)], dtype=np.int64),
        labels=np.array([group.score for group in kept], np.float32) if score is not None else None,
        rows=np.array([group.row for group in kept], np.int64),
        hashes=np.array([group.hash for group in kept], np.uint64),
        report=ReadReport(read, len(kept), {r: n for r, n in dropped.items() if n}, truncated),
        width=len(columns),
        text_ids=np.array(
            [numbers.setdefault(text.tobytes(), len(numbers)) for text in texts], np.int32
        ),
    )


def _load_column(
    data: DataConfig,
    split: str,
    tokenizer: Any,
    key: str,
    column: str | None,
    score: str | None,
    prompt: str,
) -> Examples:
    """One column's texts, each by itself; with the label in the column `score`, if there is one."""
    assert column is not None
    single = replace(data, text=column)
    problem = None
    if score is not None:
        single, problem = replace(single, label=score), "regression"
    try:
        return load_examples(
            single, split, tokenizer, problem_type=problem, labels=None, prompt=prompt
        )[0]
    except InputError as error:  # the names of the keys are those of a text with a label
        message = str(error).replace("(data.text)", f"({key})")
        raise InputError(message.replace("(data.label)", "(contrastive.score)")) from None


def _joined(columns: list[Examples]) -> Iterator[_Group]:
    """The rows that all columns of one file have kept."""
    common = functools.reduce(np.intersect1d, [texts.rows for texts in columns])
    scores = columns[0].labels
    contents = [texts.hashes for texts in columns[:2] if texts.hashes is not None]
    places = zip(*(np.searchsorted(texts.rows, common) for texts in columns), strict=True)
    for row, at in zip(common, places, strict=True):
        tokens = (
            texts.tokens[texts.offsets[i] : texts.offsets[i + 1]]
            for texts, i in zip(columns, at, strict=True)
        )
        score = math.nan if scores is None else float(scores[at[0]])
        hashes = [str(h[i]) for h, i in zip(contents, at, strict=False)]
        yield _Group(tuple(tokens), score, int(row), text_hash(*hashes), int(hashes[0]))


def _held_out(data: DataConfig) -> Holdout:
    """What is held out of the anchors."""
    sources = whole_sources(replace(data, text_pair=None), "train", labelled=False)

    def keys(source: Source) -> Iterator[Key | None]:
        contents = map(content_of, source.rows())
        return (None if content is None else (content, 0) for content in contents)

    fingerprints = [source.fingerprint() for source in sources]
    return hold_out([partial(keys, source) for source in sources], fingerprints, data)
