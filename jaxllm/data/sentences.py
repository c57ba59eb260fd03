"""Sentences of tagged words as token arrays: read, checked, aligned, kept on disk by content."""

import functools
import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data import cache
from jaxllm.data.bad_rows import BadRows
from jaxllm.data.corpus import (
    Examples,
    ReadReport,
    log_report,
    renumbered,
    sources_of,
    whole_sources,
)
from jaxllm.data.holdout import parts_of
from jaxllm.data.packing import Rows, fill_packed, ranges, starts_of
from jaxllm.data.rows import CHUNK, FORM, Source, text_hash
from jaxllm.data.tagged_rows import TOO_LONG, Fault, Tagged, TaggedRows
from jaxllm.data.tokenizer import WordEncoder, vocabulary_size
from jaxllm.errors import InputError
from jaxllm.runtime import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CACHE_VERSION = 4  # raise when the same input comes to give other arrays


@dataclass(frozen=True)
class Sentences(Examples):
    """Examples whose words have labels.

    `labels` is int32[total]: the id of its word's tag at the first piece of a word; -1, no label,
    at its other pieces, at special tokens (as in transformers' run_ner), and where a word has no
    tag.

    Attributes:
        word_offsets: int64[n + 1]; example i has the words word_offsets[i] to word_offsets[i + 1].
        word_labels: int32[words], also of words that are not among the tokens; -1 of words without
            a tag.
        word_tokens: int32[words], which token of its example is a word's first piece; -1 for a word
            that was cut off, or that the tokenizer makes nothing of.
        text: uint8[bytes], the words in UTF-8 one after the other.
        text_offsets: int64[words + 1]
    """

    word_offsets: np.ndarray
    word_labels: np.ndarray
    word_tokens: np.ndarray
    text: np.ndarray
    text_offsets: np.ndarray

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """As `fill_packed`, but `labels` and `label_weights` are [B, T]; weight 0: no label."""
        per_row = self.slots(row_length, packing=packing)
        batch = fill_packed(self, rows, row_length=row_length, max_per_row=per_row, height=height)
        assert self.labels is not None
        lengths = self.lengths_of(rows.members)
        labels_BT = np.full((height, row_length), -1, np.int32)
        labels_BT[batch["segment_ids"] > 0] = self.labels[
            ranges(self.offsets[rows.members], lengths, starts_of(lengths))
        ]
        return batch | {
            "labels": np.maximum(labels_BT, 0),
            "label_weights": (labels_BT >= 0).astype(np.float32),
        }

    def reordered(self, order: np.ndarray) -> Self:
        """As `Examples.reordered`, the labels of words too."""
        changed = super().reordered(order)
        if changed is self:
            return self
        return replace(changed, word_labels=renumbered(self.word_labels, order))

    def words(self, i: int) -> list[str]:
        """The words of example i."""
        begin, end = self.word_offsets[i : i + 2]
        ends = self.text_offsets[begin : end + 1].tolist()
        return [self.text[a:b].tobytes().decode() for a, b in itertools.pairwise(ends)]


def load_sentences(
    data: DataConfig,
    split: str,
    tokenizer: "PreTrainedTokenizerFast",
    names: list[str] | None,
    wanted: str = "auto",
) -> tuple[Sentences, list[str]]:
    """The sentences of ``split`` "train" or "dev", and the tags in the order of their ids.

    Without `names`, the tags are those of the Hub data set, else `Scheme.names` of those in the
    part. `wanted`: model.tags. All rows are in memory while they are tokenized; the arrays are
    cached on disk by content, and memory-mapped.

    Raises:
        InputError: a file, column, row or tag is not as it should be, the Hub is out of reach, or
            the processes of a run do not read the same.
    """
    limit = data.limit(split)
    with processes.together():
        encoder = WordEncoder(tokenizer, data.max_length, data.truncation)
        sources = _sources(data, split)
        told = names or sources[0].label_names
        used = ("text", "label", "labels", "on_bad_row", "max_length", "truncation")
        entry = cache.entry_of(
            data,
            (*FORM, *used),
            task="token-classification",
            version=_CACHE_VERSION,
            sources=[source.fingerprint() for source in sources],
            tokenizer=encoder.fingerprint(),
            settings=[told, wanted, limit],
        )

        def read(store: cache.Store) -> dict[str, Any]:
            rows = TaggedRows(data, split, sources, told, wanted)
            return _Reader(data, split, rows, sources[0].unit).run(encoder, limit, store)

        fault = functools.partial(_fault, vocabulary_size(tokenizer))
        arrays, about = cache.load(entry, read, fault)
        report = ReadReport(**about["report"])
        log_report(split, sources, report)
        sentences, found = Sentences(**arrays, report=report), about["names"]
    processes.check_same(f"the sentences of data.{split}", lambda: (sentences.fingerprint, found))
    return sentences, found


def _sources(data: DataConfig, split: str) -> list[Source]:
    """The sources of a part; a file whose name does not tell another format is a CoNLL file."""
    files = data.files(split)
    if not files or data.format != "auto":
        return sources_of(data, split, labelled=True)
    lists = re.compile(r".*\.(csv|jsonl?)(\.gz)?")
    parts = [
        replace(data, train=[file], dev=[file], format="auto" if lists.fullmatch(file) else "conll")
        for file in files
    ]
    sources = [source for part in parts for source in whole_sources(part, split, labelled=True)]
    return parts_of(sources, split, data, labelled=True)


def _fault(vocabulary: int, arrays: cache.Arrays, about: dict[str, Any]) -> str | None:
    """What is wrong with the arrays of sentences; see `cache.load`."""
    total, count, words = (len(arrays[name]) for name in ("tokens", "rows", "word_labels"))
    lengths = {"hashes": count, "labels": total, "type_ids": total, "word_tokens": words}
    lengths |= {"offsets": count + 1, "word_offsets": count + 1, "text_offsets": words + 1}
    ids = (-1, len(about["names"]))
    within = {"tokens": (0, vocabulary), "labels": ids, "word_labels": ids}
    within["word_tokens"] = (-1, int(np.diff(arrays["offsets"]).max()))
    offsets = {"offsets": total, "word_offsets": words, "text_offsets": len(arrays["text"])}
    return cache.array_fault(arrays, lengths=lengths, within=within, offsets=offsets)


class _Reader:
    """Tagged rows to the arrays of `Sentences`."""

    def __init__(self, data: DataConfig, split: str, tagged: TaggedRows, unit: str):
        self._data, self._split, self._tagged = data, split, tagged
        self._ids = {name: i for i, name in enumerate(tagged.names)}
        self._bad = BadRows(data, split, unit)
        self._counts = dict.fromkeys(("read", "kept", "truncated", "repaired"), 0)

    def run(self, encoder: WordEncoder, limit: int | None, store: cache.Store) -> dict[str, Any]:
        """Appends the arrays of at most `limit` sentences; gives ``names`` and ``report``.

        Raises:
            InputError: a row that cannot be used where that stops the run, or none that can.
        """
        rows = self._tagged.rows
        limit = len(rows) if limit is None else limit
        parts: dict[str, list[np.ndarray]] = {
            name: [np.zeros(1, np.int64)] for name in ("offsets", "word_offsets", "text_offsets")
        }
        for start in range(0, len(rows), CHUNK):
            if self._counts["kept"] < limit:
                self._take(rows[start : start + CHUNK], encoder, limit, parts)
        advice = self._tagged.advice(" ".join(self._bad.counts))
        self._bad.raise_if_stopped(self._counts["read"], advice, self._counts["repaired"])
        if not self._counts["kept"]:
            raise InputError(
                f"data.{self._split}: no sentence is left: {str(self._bad) or 'found none'}"
                f"{advice}; expected at least one that can be used: correct the file, or "
                "give another"
            )
        for name, arrays in parts.items():
            array = np.concatenate(arrays)
            store.append(name, np.cumsum(array) if name.endswith("offsets") else array)
        report = {**self._counts, "dropped": self._bad.counts}
        return {"names": self._tagged.names, "report": report}

    def _take(
        self,
        rows: list[tuple[str, Fault | Tagged]],
        encoder: WordEncoder,
        limit: int,
        parts: dict[str, list[np.ndarray]],
    ) -> None:
        encoded, numbers = encoder.encode_words(
            [row.words for _, row in rows if isinstance(row, Tagged)]
        )
        ends = np.cumsum(encoded.lengths)
        at = -1
        for source, row in rows:
            at += isinstance(row, Tagged)
            if self._counts["kept"] == limit:
                return
            self._counts["read"] += 1
            if isinstance(row, Fault):
                self._bad.add(source, row.number, row.reason, note=row.note)
            elif encoded.lengths[at] == 0:
                reason = f"{TOO_LONG}={self._data.max_length}"
                self._bad.add(source, row.number, reason, "truncation")
            else:
                self._counts["kept"] += 1
                self._counts["truncated"] += bool(encoded.full_lengths[at] > encoded.lengths[at])
                self._counts["repaired"] += row.repaired
                of = slice(ends[at] - encoded.lengths[at], ends[at])
                arrays = self._aligned(row, numbers[of])
                arrays |= {"tokens": encoded.tokens[of], "type_ids": encoded.type_ids[of]}
                for name, array in arrays.items():
                    parts.setdefault(name, []).append(array)

    def _aligned(self, row: Tagged, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a sentence whose tokens begin the words `numbers`, or none (-1)."""
        first = np.flatnonzero(numbers >= 0)
        word_labels = np.array(
            [-1 if tag is None else self._ids[tag] for tag in row.tags], np.int32
        )
        word_tokens = np.full(len(row.words), -1, np.int32)
        word_tokens[numbers[first]] = first
        labels = np.full(len(numbers), -1, np.int32)
        labels[first] = word_labels[numbers[first]]
        text = [word.encode() for word in row.words]
        return {
            "labels": labels,
            "offsets": np.array([len(numbers)]),
            "rows": np.array([row.number]),
            "hashes": np.array([text_hash(*row.words)], np.uint64),
            "word_labels": word_labels,
            "word_tokens": word_tokens,
            "word_offsets": np.array([len(row.words)]),
            "text": np.frombuffer(b"".join(text), np.uint8),
            "text_offsets": np.array([len(word) for word in text]),
        }
