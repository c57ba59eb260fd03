"""What a batch of causal language modelling asks: of every token of a document, the next one."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.config.fields import DataConfig, LanguageModelConfig
from jaxllm.data.documents import Documents
from jaxllm.data.packing import Rows, ranges, slots, starts_of
from jaxllm.data.segments import chunks, joined, mixed
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ORDER = 3  # stream of random numbers; another than the loader's


class NextTokenExamples:
    """Documents cut into examples of at most ``data.max_length`` places.

    A document of n tokens has n + 1 places: at the first stands the token that begins documents,
    then its own tokens; asked for at each is what comes next, at the last the token that ends
    documents. So each token of a document, and its end, is asked for exactly once. Where documents
    are joined, one's end and the next one's beginning are one token.

    Args:
        documents: the text.
        data: lengths and weights.
        lm: whether documents are joined.
        tokenizer: has the tokens that begin and end documents.
        seed: of the order of joined documents, and of mixing.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """

    def __init__(
        self,
        documents: Documents,
        data: DataConfig,
        lm: LanguageModelConfig,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        seed: int,
    ):
        self.documents, self._data, self._lm, self._seed = documents, data, lm, seed
        self.begin_id, self.end_id = document_ids(tokenizer)
        if lm.rows == "joined":
            self.begin_id = self.end_id
        parts = [
            chunks(shard, int(begin), max(documents.size, 1))  # a document is one chunk
            for shard, begin in zip(documents.shards, documents.begins, strict=True)
        ]
        corpora = sorted(set(documents.corpora.tolist()))
        self._parts = [
            joined([part for part, c in zip(parts, documents.corpora, strict=True) if c == corpus])
            for corpus in corpora
        ]
        if data.weights is not None and corpora != list(range(len(data.weights))):
            raise InputError(
                f"data.max_train_examples: found {data.max_train_examples}, which leaves some of "
                "data.train unread, but each has its share in data.weights; raise it"
            )
        # Two epochs, as the thread that loads may be one ahead of a caller that counts steps.
        self.at = functools.lru_cache(maxsize=2)(self._at)

    @property
    def fingerprint(self) -> int:
        """A checksum of the documents."""
        return self.documents.fingerprint

    def _at(self, epoch: int) -> "EpochExamples":
        """The examples of an epoch: joined documents are in another order in each."""
        length = self._data.max_length
        seeds = np.random.SeedSequence((self._seed, epoch, _ORDER))
        generator = np.random.Generator(np.random.Philox(seeds))
        bounds = joined(self._parts).first
        order = np.arange(len(bounds))
        if self._data.weights is not None:
            order = mixed(self._parts, self._data.weights, generator) % len(bounds)
        if self._lm.rows == "documents":
            return EpochExamples.of(self, bounds[order], length)
        order = generator.permutation(order)
        # Rows begin elsewhere in each epoch, also where there is but one document.
        return EpochExamples.of(self, bounds[order], length, first=int(generator.integers(length)))

    def windows(self, stride: int) -> "EpochExamples":
        """Examples to judge with, the documents in their order: each but a document's first (where
        documents are joined, the first of all) begins `stride` places behind the one before it,
        and asks only for what that one has not asked for.
        """
        bounds = joined(self._parts).first
        return EpochExamples.of(self, bounds, self._data.max_length, stride=stride)

    @property
    def text_bytes(self) -> int:
        """Bytes of all documents in UTF-8."""
        return int(sum(shard.bytes.sum() for shard in self.documents.shards))

    @property
    def joined(self) -> bool:
        """Whether documents are joined."""
        return self._lm.rows == "joined"


@dataclass(frozen=True)
class EpochExamples:
    """The examples of one epoch, and what a loader asks of them.

    Attributes:
        source: what they were made by.
        bounds: int64[n, 2], numbers of the first token of each document, and of that behind it.
        offsets: int64[n + 1], where the places of each document begin and end.
        begins: int64[m], the first place of each example.
        lengths: int64[m], its places.
        context: int64[m], how many of them are there to be seen only.
    """

    source: NextTokenExamples
    bounds: np.ndarray
    offsets: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    context: np.ndarray

    @classmethod
    def of(
        cls,
        source: NextTokenExamples,
        bounds: np.ndarray,
        length: int,
        *,
        stride: int | None = None,
        first: int = 0,
    ) -> "EpochExamples":
        """Documents cut every `stride` places, which is `length` unless it is told.

        `first`: of joined documents, the place that the first example begins at; what is before it
        comes last.
        """
        stride = stride or length
        offsets = starts_of(bounds[:, 1] - bounds[:, 0] + 1)
        # What is cut: each document, or all of them as one.
        edges = offsets[[0, -1]] if source.joined else offsets
        sizes = np.diff(edges)
        counts = 1 + np.maximum(-(-(sizes - length) // stride), 0)
        ordinal = ranges(np.zeros_like(counts), counts, starts_of(counts))
        whole = np.repeat(np.arange(len(sizes)), counts)
        lengths = np.minimum(sizes[whole] - ordinal * stride, length)
        begins = edges[whole] + ordinal * stride + first
        context = np.where(ordinal > 0, length - stride, 0)
        return cls(source, bounds, offsets, begins, lengths, context)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def rows(self) -> np.ndarray:
        """int64[m], the number of each example."""
        return np.arange(len(self))

    @property
    def text_lengths(self) -> np.ndarray:
        """As `lengths`."""
        return self.lengths

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        """int64[k]: places of the examples `members`."""
        return self.lengths[members]

    def slots(self, row_length: int, *, packing: bool) -> int:
        """Q, the examples that a row holds at most."""
        return slots(row_length) if packing else 1

    @property
    def text_tokens(self) -> int:
        """Tokens of the documents, their ends left out."""
        return int(np.sum(self.bounds[:, 1] - self.bounds[:, 0]))

    @property
    def text_bytes(self) -> int:
        """Bytes of the documents in UTF-8."""
        return self.source.text_bytes

    @property
    def described(self) -> str:
        """What there is, for a report."""
        return f"{len(self.bounds)} documents, {self.text_tokens} tokens"

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """The batch of `rows`, with empty rows below them up to `height`. B = height, T =
        row_length.

        ``input_ids``, ``segment_ids``, ``labels`` int32 [B, T]; ``label_weights`` and
        ``text_weights`` float32 [B, T]: whether a label counts, and whether it counts and is of a
        document's text, not its end.
        """
        members = rows.members
        lengths = self.lengths[members]
        place = ranges(np.zeros_like(lengths), lengths, starts_of(lengths))  # within the example
        judged = place >= np.repeat(self.context[members], lengths)
        tokens, labels, ends = self._at(np.repeat(self.begins[members], lengths) + place)
        return rows.spread(
            *(lengths, row_length, height),
            input_ids=tokens,
            labels=labels,
            label_weights=judged.astype(np.float32),
            text_weights=(judged & ~ends).astype(np.float32),
        )

    def _at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(int32[k] tokens, int32[k] what comes next, bool[k] whether that is a document's end)."""
        places = places % self.offsets[-1]
        document = np.searchsorted(self.offsets, places, "right") - 1
        within = places - self.offsets[document]
        begin, end = self.bounds[document].T
        first, last = within == 0, begin + within == end
        take = self.source.documents.take
        tokens = np.full(len(places), self.source.begin_id, np.int32)
        labels = np.full(len(places), self.source.end_id, np.int32)
        tokens[~first] = take((begin + within - 1)[~first])[0]
        labels[~last] = take((begin + within)[~last])[0]
        return tokens, labels, last


def document_ids(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, int]:
    """Ids of the tokens that begin and end a document; where there is none to begin with, it is the
    one that ends.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if end is None:
        raise InputError(
            f"model.tokenizer: this tokenizer ({tokenizer.name_or_path or 'without a path'}) has "
            "no end-of-text token, which a causal language model learns to stop with; take another "
            "one, or name it in tokenizer_config.json as eos_token"
        )
    return end if begin is None else begin, end
