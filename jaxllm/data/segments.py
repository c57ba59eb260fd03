"""Documents to the examples of an epoch: chunks of one document, or next-sentence pairs."""

import math
from dataclasses import dataclass, fields

import numpy as np

from jaxllm.data.documents import Shard
from jaxllm.data.tokenizer import shares
from jaxllm.errors import InputError

_SHORT_PAIRS = 0.1  # share of documents whose pairs are shorter than a row
_TRIES = 10  # draws of another document before the same one is taken


@dataclass(frozen=True)
class Segments:
    """n examples as ranges of token numbers; special tokens are not in them.

    Attributes:
        first: int64[n, 2], begin and end of the first text.
        second: int64[n, 2], of the second text; begin equals end where there is none.
        labels: int32[n], 1 where the second text is of another document; 0 otherwise.
    """

    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def text_lengths(self) -> np.ndarray:
        """int64[n]: tokens without special ones."""
        return (self.first[:, 1] - self.first[:, 0]) + (self.second[:, 1] - self.second[:, 0])

    def at(self, index: np.ndarray) -> "Segments":
        """The examples of int64[m] `index`."""
        return Segments(*(getattr(self, field.name)[index] for field in fields(self)))


def joined(parts: list[Segments]) -> Segments:
    """All examples of `parts`, in order."""
    names = [field.name for field in fields(Segments)]
    return Segments(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def chunks(shard: Shard, begin: int, length: int) -> Segments:
    """Every document of a shard in parts of `length` tokens, its last part shorter.

    `begin` is the number of the shard's first token.
    """
    bounds = np.asarray(shard.lines[shard.documents]) + begin
    sizes = np.diff(bounds)
    counts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), counts)
    ordinal = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = bounds[document] + ordinal * length
    ends = np.minimum(begins + length, bounds[document + 1])
    none = np.zeros((len(begins), 2), np.int64)
    return Segments(np.stack([begins, ends], 1), none, np.zeros(len(begins), np.int32))


def pooled(shards: list[Shard], begins: list[int]) -> Shard:
    """All documents of shards whose tokens follow each other, their lines in numbers of all tokens.

    Only the lines and documents of what it gives are those of all.
    """
    used = [np.asarray(shard.lines[: shard.documents[-1] + 1]) for shard in shards]
    counts = np.cumsum([0, *(len(lines) - 1 for lines in used)])
    starts = [lines[:-1] + begin for lines, begin in zip(used, begins, strict=True)]
    documents = [
        np.asarray(shard.documents[:-1]) + count
        for shard, count in zip(shards, counts, strict=False)
    ]
    return shards[0]._replace(
        lines=np.concatenate([*starts, used[-1][-1:] + begins[-1]]),
        documents=np.concatenate([*documents, counts[-1:]]),
    )


def next_sentence_pairs(
    shard: Shard, begin: int, length: int, *, seed: int, epoch: int, number: int
) -> Segments:
    """Pairs of texts of at most `length` tokens together, as BERT's create_pretraining_data.

    A text is one or more lines (sentences) of a document. In half of the pairs the second one goes
    on where the first ends; in the others it comes from another document, and what followed the
    first is used again. One document in ten has pairs of a shorter, random length. Each epoch has
    other pairs: those of a document depend on `seed`, `epoch`, the corpus's `number` and the
    document alone.

    Raises:
        InputError: there are not two documents, or none has two lines.
    """
    lines = np.asarray(shard.lines)
    documents = np.asarray(shard.documents)
    if len(documents) < 3 or len(lines) == len(documents):
        found = "one document" if len(documents) < 3 else "documents of a single line"
        raise InputError(
            f"data.train: found {found}, expected at least two documents of several "
            "lines, a sentence each: next-sentence pairs are made of them (data.documents: "
            "blank_line puts a blank line between documents)"
        )
    rows: list[tuple[int, int, int, int, bool]] = []
    for document in range(len(documents) - 1):
        key = np.random.SeedSequence((seed, epoch, number, document))
        pairs = _Pairs(lines, documents, np.random.Generator(np.random.Philox(key)))
        rows.extend(pairs.of(document, length))
    table = np.array(rows, np.int64)
    return Segments(table[:, :2] + begin, table[:, 2:4] + begin, table[:, 4].astype(np.int32))


@dataclass(frozen=True)
class _Pairs:
    lines: np.ndarray
    documents: np.ndarray
    rng: np.random.Generator

    def of(self, document: int, length: int) -> list[tuple[int, int, int, int, bool]]:
        target = length
        if self.rng.random() < _SHORT_PAIRS and length > 2:
            target = int(self.rng.integers(2, length, endpoint=True))
        pairs = []
        line, last = int(self.documents[document]), int(self.documents[document + 1])
        while line < last:
            # Lines up to the one that reaches the target, or the document's end.
            end = int(np.searchsorted(self.lines, self.lines[line] + target))
            end = min(max(end, line + 1), last)
            split = line + 1
            if end - line >= 2:
                split = line + int(self.rng.integers(1, end - line - 1, endpoint=True))
            other = end - line == 1 or self.rng.random() < 0.5
            if other:
                follow, stop = self._elsewhere(document, target - self._tokens(line, split))
                following = split
            else:
                follow, stop, following = split, end, end
            first, second = self._cut(line, split, follow, stop, length)
            pairs.append((*first, *second, other))
            line = following
        return pairs

    def _tokens(self, begin: int, end: int) -> int:
        return int(self.lines[end] - self.lines[begin])

    def _elsewhere(self, document: int, target: int) -> tuple[int, int]:
        """Lines of another document, from a random one on, that have `target` tokens or more."""
        for _ in range(_TRIES):
            other = int(self.rng.integers(len(self.documents) - 1))
            if other != document:
                break
        begin, last = int(self.documents[other]), int(self.documents[other + 1])
        begin = int(self.rng.integers(begin, last))
        end = int(np.searchsorted(self.lines, self.lines[begin] + max(target, 1)))
        return begin, min(max(end, begin + 1), last)

    def _cut(
        self, a: int, a_end: int, b: int, b_end: int, length: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Token ranges of both texts, the longer cut first, each token at a random end of it."""
        sizes = self._tokens(a, a_end), self._tokens(b, b_end)

        def kept(line: int, size: int, share: int) -> tuple[int, int]:
            begin = int(self.lines[line]) + int(self.rng.binomial(size - share, 0.5))
            return begin, begin + share

        first, second = shares(*sizes, length)
        return kept(a, sizes[0], first), kept(b, sizes[1], second)


def mixed(parts: list[Segments], weights: list[float], rng: np.random.Generator) -> np.ndarray:
    """int64[m]: the examples of an epoch out of corpora, as numbers in ``joined(parts)``.

    The epoch has about as many tokens as all corpora together, and each corpus its weight's share
    of them: its examples once, twice, ... and a random part of them once more. A repeated example
    is counted on by the number of all examples, so that it can be told from the first.
    """
    total = sum(len(part) for part in parts)
    tokens = np.array([part.text_lengths.sum() for part in parts], float)
    wanted = tokens.sum() * np.asarray(weights) / sum(weights)
    chosen = []
    begin = 0
    for part, have, want in zip(parts, tokens, wanted, strict=True):
        rounds, rest = divmod(want / have, 1)
        whole = np.arange(math.ceil(rounds + (rest > 0)))[:, None] * total
        numbers = begin + np.arange(len(part)) + whole
        extra = rng.permutation(len(part))[: round(rest * len(part))]
        once = numbers[: int(rounds)].ravel()
        chosen += [once, numbers[-1][extra] if rest else once[:0]]
        begin += len(part)
    return np.concatenate(chosen)
