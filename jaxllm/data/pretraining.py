"""What a batch of pretraining asks: masked tokens, and whether a text goes on."""

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.config.fields import DataConfig, MaskingConfig
from jaxllm.data.document_builder import word_starts
from jaxllm.data.documents import Documents
from jaxllm.data.masking import Masking, lowest, mask
from jaxllm.data.packing import Rows, fill_packed, ranges, slots, starts_of
from jaxllm.data.philox import philox
from jaxllm.data.segments import Segments, chunks, joined, mixed, next_sentence_pairs, pooled
from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PAIRS_PER_ROW = 4  # nine in ten pairs fill a row
_SAMPLE, _FEWEST_WORDS = 100_000, 0.05  # tokens; words in them, which have 1.3 to 2 in English
_SURPLUS = 2  # stream of random numbers; masking.py has the others


@dataclass(frozen=True)
class _Texts:
    """Token arrays of some examples, as `fill_packed` takes them, and the beginnings of words."""

    tokens: np.ndarray
    type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    starts: np.ndarray


class PretrainingExamples:
    """Masked text out of documents: [CLS] chunk [SEP], or [CLS] text [SEP] other text [SEP].

    A row holds several of them, and attention does not go from one to another.

    Args:
        documents: the text.
        data: lengths and weights.
        masking: what is asked for.
        tokenizer: has the special tokens.
        seed: of pairs, of mixing and of masks.
        pairs: next-sentence pairs in place of chunks.
        masked, random: see `Masking`.

    Raises:
        InputError: the tokenizer has no such special token, or cannot tell words where they are to
            be masked whole; there is nothing to make pairs of.
    """

    def __init__(
        self,
        documents: Documents,
        data: DataConfig,
        masking: MaskingConfig,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        seed: int,
        pairs: bool = False,
        masked: float = 0.8,
        random: float = 0.1,
    ):
        self._documents, self._data, self.seed, self.pairs = documents, data, seed, pairs
        self.mask_slots = masking.slots
        self._cls, self._sep, mask_id = special_ids(tokenizer)
        words = masking.words is not None or word_starts(tokenizer) is not None
        if masking.unit != "token" and not words:
            raise InputError(
                f"masking.unit: found {masking.unit}, but this tokenizer's tokens do not show "
                "where words begin; set masking.unit: token, or give the words as masking.words"
            )
        if masking.unit != "token" and masking.words is None:
            check_words(masking.unit, documents)
        ordinary = np.zeros(vocabulary_size(tokenizer), bool)
        ordinary[list(tokenizer.get_vocab().values())] = True
        ordinary[tokenizer.all_special_ids] = False
        self.masking = Masking(masking.unit, masking.rate, mask_id, ordinary, masked, random)
        # Two epochs, as the thread that loads may be one ahead of a caller that counts steps.
        self.at = functools.lru_cache(maxsize=2)(self._at)

    @property
    def fingerprint(self) -> int:
        """A checksum of the documents."""
        return self._documents.fingerprint

    def _at(self, epoch: int) -> "EpochExamples":
        """The examples of an epoch."""
        documents, seed = self._documents, self.seed
        specials = 3 if self.pairs else 2
        room = self._data.max_length - specials
        corpora = []
        for number in np.unique(documents.corpora).tolist():
            of_corpus = np.flatnonzero(documents.corpora == number)
            shards = [documents.shards[i] for i in of_corpus]
            begins = documents.begins[of_corpus].tolist()
            if self.pairs:
                key = {"seed": seed, "epoch": epoch, "number": number}
                corpora.append(next_sentence_pairs(pooled(shards, begins), 0, room, **key))
            else:
                parts = zip(shards, begins, strict=True)
                corpora.append(joined([chunks(shard, begin, room) for shard, begin in parts]))
        segments = joined(corpora)
        numbers = np.arange(len(segments))
        if self._data.weights is not None:
            if set(documents.corpora.tolist()) != set(range(len(self._data.weights))):
                raise InputError(
                    f"data.max_train_examples: found {self._data.max_train_examples}, which leaves "
                    "some of data.train unread, but each has its share in data.weights; raise it"
                )
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
            numbers = mixed(corpora, self._data.weights, rng)
            segments = segments.at(numbers % len(segments))
        return EpochExamples(self, epoch, segments, numbers, segments.text_lengths + specials)

    def texts(self, segments: Segments) -> _Texts:
        """The examples with [CLS] in front and [SEP] behind each text."""
        (first, first_end), (second, second_end) = segments.first.T, segments.second.T
        head, tail = first_end - first, second_end - second
        offsets = starts_of(head + 2 + (tail + 1 if self.pairs else 0))
        begins = offsets[:-1]
        tokens = np.full(offsets[-1], self._sep, np.int32)
        starts = np.ones(len(tokens), bool)
        tokens[begins] = self._cls
        for source, target, size in ((first, begins + 1, head), (second, begins + head + 2, tail)):
            bounds = starts_of(size)
            where = ranges(target, size, bounds)
            tokens[where], starts[where] = self._documents.take(ranges(source, size, bounds))
        type_ids = np.zeros(len(tokens), np.uint8)
        if self.pairs:
            size = tail + 1
            type_ids[ranges(begins + head + 2, size, starts_of(size))] = 1
        return _Texts(tokens, type_ids, offsets, segments.labels, starts)


def check_words(unit: str, documents: Documents) -> None:
    """Refuses text without spaces, whose words a tokenizer that marks spaces does not tell apart.

    They would be as long as the text, and hardly one short enough to be masked.
    """
    sample = np.linspace(0, documents.size - 1, min(_SAMPLE, documents.size)).astype(np.int64)
    if (share := documents.take(sample)[1].mean()) < _FEWEST_WORDS:
        raise InputError(
            f"masking.unit: found {unit}, but of the corpus's tokens only {share:.1%} begin a "
            "word as this tokenizer spells them: is it text without spaces? Give the words as "
            "masking.words, or set masking.unit: token"
        )


@dataclass(frozen=True)
class EpochExamples:
    """The examples of one epoch, and what a loader asks of them.

    Attributes:
        source: what they were made by.
        epoch: which one.
        segments: where their texts are.
        rows: int64[n], the number of each example; together with seed and epoch it decides the
            masks.
        lengths: int64[n], tokens with the special ones.
    """

    source: PretrainingExamples
    epoch: int
    segments: Segments
    rows: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def text_lengths(self) -> np.ndarray:
        """As `lengths`: both texts of a pair attend to each other."""
        return self.lengths

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        """int64[m]: tokens of the examples `members`."""
        return self.lengths[members]

    def slots(self, row_length: int, *, packing: bool) -> int:
        """Q, the examples that a row holds at most."""
        if not packing:
            return 1
        return _PAIRS_PER_ROW if self.source.pairs else slots(row_length)

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """The batch of `rows`: that of `fill_packed`, with masks.

        ``head_positions``, ``labels`` int32 [B, P] and ``label_weights`` float32 [B, P] are of the
        masked tokens, P = ``masking.slots``; ``surplus_masks`` float32 [B] counts the masks that
        were taken back as the row had more of them. With pairs there are ``pooled_positions``,
        ``next_sentence_labels`` int32 [B, Q] and ``next_sentence_weights`` float32 [B, Q] of the
        first tokens, Q = `slots`.
        """
        source, epoch = self.source, self.epoch
        P = source.mask_slots or math.ceil(source.masking.rate * row_length)
        texts = source.texts(self.segments.at(rows.members))
        numbers = self.rows[rows.members]
        tokens, asked = mask(
            source.masking,
            *(texts.tokens, texts.starts, texts.offsets, numbers),
            seed=source.seed,
            epoch=epoch,
        )
        bounds = texts.offsets[rows.starts]  # where each row begins among the tokens
        at = np.flatnonzero(asked)
        row = np.searchsorted(bounds, at, "right") - 1
        counts = np.bincount(row, minlength=rows.height)
        surplus = np.zeros(height, np.float32)
        surplus[: rows.height] = np.maximum(counts - P, 0)
        if surplus.any():
            example = np.searchsorted(texts.offsets, at, "right") - 1
            place = at - texts.offsets[example]
            score = philox((source.seed, epoch), numbers[example], place, _SURPLUS)[0]
            kept = lowest(score, row, np.full(rows.height, P))
            tokens[at[~kept]] = texts.tokens[at[~kept]]
            at, row = at[kept], row[kept]
            counts = np.minimum(counts, P)
        slot = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)

        def gather(values: np.ndarray, dtype: type) -> np.ndarray:
            array: np.ndarray = np.zeros((height, P), dtype)
            array[row, slot] = values
            return array

        batch = fill_packed(
            replace(texts, tokens=tokens),
            Rows(np.arange(len(rows.members)), rows.starts),
            row_length=row_length,
            max_per_row=self.slots(row_length, packing=packing),
            height=height,
        )
        firsts = {
            "pooled_positions": batch["head_positions"],
            "next_sentence_labels": batch["labels"],
            "next_sentence_weights": batch["label_weights"],
        }
        return {
            **batch,
            "head_positions": gather(at - bounds[row], np.int32),
            "labels": gather(texts.tokens[at], np.int32),
            "label_weights": gather(np.ones(len(at)), np.float32),
            "surplus_masks": surplus,
            **(firsts if source.pairs else {}),
        }


def special_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Ids of [CLS], [SEP] and [MASK].

    Raises:
        InputError: the tokenizer lacks one.
    """
    names = ("cls_token", "sep_token", "mask_token")
    ids = [getattr(tokenizer, f"{name}_id") for name in names]
    for name, number in zip(names, ids, strict=True):
        if number is None:
            raise InputError(
                f"model.tokenizer: this tokenizer ({tokenizer.name_or_path or 'without a path'}) "
                f"has no {name.replace('_', ' ')}, which a masked language model needs; take "
                f"another one, or name it in tokenizer_config.json as {name}"
            )
    return ids
