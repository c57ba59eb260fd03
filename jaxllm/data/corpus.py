"""Labelled text as token arrays: read, checked, tokenized, and kept on disk by content."""

import functools
import logging
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data import cache
from jaxllm.data.builder import Builder
from jaxllm.data.holdout import parts_of
from jaxllm.data.hub import hub_source
from jaxllm.data.labels import Labels
from jaxllm.data.packing import Rows, fill_packed, slots
from jaxllm.data.readers import file_source
from jaxllm.data.rows import FORM, Source
from jaxllm.data.tokenizer import Encoder, load_tokenizer, vocabulary_size
from jaxllm.errors import InputError
from jaxllm.runtime import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Examples", "ReadReport", "load_examples", "load_tokenizer"]

_LOG = logging.getLogger(__name__)
_CACHE_VERSION = 4  # raise when the same input comes to give other arrays

_SHOWN = 10  # labels in the log


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows: read = kept + the sum of dropped.

    `dropped` counts by reason; `truncated` of the kept were cut to ``data.max_length`` tokens, and
    the tags of `repaired` were made legal. `remarks` are to be told of rows that are used.
    """

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    repaired: int = 0
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examples:
    """n tokenized examples, one after the other; and what a loader asks of them.

    Attributes:
        tokens: int32[total].
        type_ids: uint8[total]; 1 in the second text of a pair.
        offsets: int64[n + 1]; example i is ``tokens[offsets[i]:offsets[i + 1]]``.
        labels: int32[n] ids | float32[n] (regression) | float32[n, C] (several labels) | None.
        rows: int64[n], number of the row in its file: from 1, header not counted.
        report: what became of the rows that were read.
        hashes: uint64[n], `text_hash` of the texts of the row; None = not known.
    """

    tokens: np.ndarray
    type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None
    rows: np.ndarray
    report: ReadReport
    hashes: np.ndarray | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """int64[n]: tokens of each example."""
        return np.diff(self.offsets)

    @property
    def text_lengths(self) -> np.ndarray:
        """Tokens of each text that attends to itself alone: an example is one, or several."""
        return np.diff(self.offsets)

    def at(self, epoch: int) -> "Examples":
        """The examples of an epoch: the same in each."""
        return self

    def reordered(self, order: np.ndarray) -> Self:
        """The examples with label i as label order[i], of int32[C] `order`; -1 is no label."""
        if self.labels is None or np.array_equal(order, np.arange(len(order))):
            return self
        return replace(self, labels=renumbered(self.labels, order))

    @functools.cached_property
    def fingerprint(self) -> int:
        """A checksum of what is trained on: tokens, where examples begin, labels."""
        checksum = 0
        for array in (self.tokens, self.offsets, self.labels):
            if array is not None:
                checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return checksum

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        """int64[m]: tokens of the examples `members`, without going through all."""
        return self.offsets[members + 1] - self.offsets[members]

    def slots(self, row_length: int, *, packing: bool) -> int:
        """P, the examples that a row holds at most."""
        return slots(row_length) if packing else 1

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch of `rows`, as `fill_packed` says."""
        per_row = self.slots(row_length, packing=packing)
        return fill_packed(self, rows, row_length=row_length, max_per_row=per_row, height=height)


def renumbered(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Labels, ids or a column for each, in another order; see `Examples.reordered`."""
    if labels.ndim == 2:
        columns = np.empty_like(labels)
        columns[:, order] = labels
        return columns
    return np.append(order, np.int32(-1))[labels]


def load_examples(
    data: DataConfig,
    split: str,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    problem_type: str | None,
    labels: list[str] | None,
    prompt: str = "",
) -> tuple[Examples, list[str]]:
    """The examples of ``split`` "train" or "dev", and the label names in the order of their ids.

    Without `labels` the names are ``data.labels``, else those of the Hub data set, else those of
    the training part, sorted. `problem_type` None reads text only. `prompt`: what every text begins
    with. The arrays are cached on disk by the content of files and tokenizer and the settings that
    matter, and memory-mapped. With ``data.streaming`` nothing is cached, and reading stops at
    ``data.max_*_examples``.

    Raises:
        InputError: a file, column, row or label is not as it should be, the Hub is out of reach, or
            the processes of a run do not read the same.
    """
    with processes.together():
        sources = sources_of(data, split, labelled=problem_type is not None)
        arrays, names, report = load_arrays(
            data, split, sources, tokenizer, problem_type=problem_type, labels=labels, prompt=prompt
        )
        examples = Examples(labels=arrays.pop("labels", None), **arrays, report=report)
    processes.check_same(f"the examples of data.{split}", lambda: (examples.fingerprint, names))
    return examples, names


def load_arrays(
    data: DataConfig,
    split: str,
    sources: list[Source],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    problem_type: str | None,
    labels: list[str] | None,
    choices: int = 0,
    prompt: str = "",
) -> tuple[dict[str, np.ndarray], list[str], ReadReport]:
    """What `load_examples` makes its examples of: arrays by name, label names, report.

    `choices`: a row has so many, and a text for each; the texts of a row share data.max_length.
    """
    names = labels if labels is not None else data.told_labels
    if problem_type in (None, "regression"):
        names = None
    elif names is None and split != "train":
        raise ValueError(f"labels of the {split} part must be those of the training part")
    limit = data.limit(split)
    if names is None and problem_type not in (None, "regression"):
        names = sources[0].label_names
    told = names is not None and names == data.told_labels
    reader = Labels(problem_type, names, told=told, columns=isinstance(data.label, list))
    encoder = Encoder(
        tokenizer,
        data.max_length // (choices or 1),
        data.truncation,
        pair=bool(choices) or data.text_pair is not None,
        prompt=prompt,
    )
    builder = Builder(data, split, sources, encoder, reader, limit, choices)
    entry = None
    if not data.streaming:
        used = ("text", "text_pair", "choices", "label", "on_bad_row", "max_length", "truncation")
        entry = cache.entry_of(
            data,
            (*FORM, *used),
            version=_CACHE_VERSION,
            sources=[source.fingerprint() for source in sources],
            tokenizer=encoder.fingerprint(),
            settings=[problem_type, names, told, limit, choices],
        )
    fault = functools.partial(_fault, vocabulary_size(tokenizer), choices or 1)
    arrays, about = cache.load(entry, builder.run, fault)
    report = ReadReport(**about["report"])
    log_report(split, sources, report)
    _log_labels(split, data, about["names"] if reader.learning else [], about["remarks"])
    return arrays, about["names"], report


def sources_of(data: DataConfig, split: str, *, labelled: bool) -> list[Source]:
    """The rows of a split: of files, or of a Hub data set."""
    return parts_of(whole_sources(data, split, labelled=labelled), split, data, labelled=labelled)


def whole_sources(data: DataConfig, split: str, *, labelled: bool) -> list[Source]:
    """The files, or the part of a Hub data set, that have the rows of a split."""
    if data.dataset is not None:
        return [hub_source(data, split, labelled=labelled)]
    files = data.files(split)
    if not files:
        raise InputError(f"data.{split} is empty; expected at least one file, or data.dataset")
    return [file_source(Path(file), data, labelled=labelled) for file in files]


def _log_labels(split: str, data: DataConfig, learned: list[str], remarks: list[str]) -> None:
    """Logs how many labels were learned, and the first of them; warns of what looks wrong."""
    if learned:
        first = ", ".join(name[:40] for name in learned[:_SHOWN])
        more = ", …" if len(learned) > _SHOWN else ""
        where = f"column {data.label!r} (data.label)"
        _LOG.info("data.%s: %d labels in %s: %s%s", split, len(learned), where, first, more)
    for remark in remarks:
        _LOG.warning("data.%s: column %r (data.label): %s", split, data.label, remark)


def _fault(vocabulary: int, width: int, arrays: cache.Arrays, about: dict[str, Any]) -> str | None:
    """What is wrong with arrays of examples of `width` texts each; see `cache.load`."""
    count, total = len(arrays["rows"]), len(arrays["tokens"])
    within = {"tokens": (0, vocabulary)}
    if (labels := arrays.get("labels")) is not None:
        if len(labels) != count or not np.isfinite(labels).all():
            return "labels are not a number for each row"
        if about["names"]:
            within["labels"] = (0, 2 if labels.ndim == 2 else len(about["names"]))
    lengths = {"hashes": count, "type_ids": total, "offsets": count * width + 1}
    return cache.array_fault(arrays, lengths=lengths, within=within, offsets={"offsets": total})


def log_report(split: str, sources: list[Source], report: ReadReport) -> None:
    """Logs what was read, and warns of what was not kept as it was."""
    names = ", ".join(source.name for source in sources)
    _LOG.info("data.%s: %d of %d rows of %s", split, report.kept, report.read, names)
    if report.dropped:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in report.dropped.items())
        _LOG.warning("data.%s: dropped %d rows: %s", split, sum(report.dropped.values()), reasons)
    if report.truncated:
        _LOG.warning("data.%s: %d texts truncated", split, report.truncated)
    if report.repaired:
        _LOG.warning("data.%s: tags of %d sentences repaired", split, report.repaired)
