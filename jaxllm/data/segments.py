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
    other pairs; they depend on `seed`, `epoch`, the corpus's `number` and its documents alone.

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
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, number))))
    count = len(documents) - 1
    target = np.full(count, length)
    if length > 2:
        shorter = rng.integers(2, length, count, endpoint=True)
        target = np.where(rng.random(count) < _SHORT_PAIRS, shorter, target)
    pairs = _Pairs(lines, documents, target, length, rng)
    document, line = np.arange(count), documents[:-1]
    made: list[np.ndarray] = []
    of: list[np.ndarray] = []
    while len(document):  # one pair of each document that is not at its end
        rows, line = pairs.next(document, line)
        made.append(rows)
        of.append(document)
        more = line < documents[document + 1]
        document, line = document[more], line[more]
    table = np.concatenate(made)[np.argsort(np.concatenate(of), kind="stable")]
    return Segments(table[:, :2] + begin, table[:, 2:4] + begin, table[:, 4].astype(np.int32))


@dataclass(frozen=True)
class _Pairs:
    """Pairs of many documents at a time. `target`: tokens that pairs of each should have."""

    lines: np.ndarray
    documents: np.ndarray
    target: np.ndarray
    length: int
    rng: np.random.Generator

    def next(self, document: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(int64[m, 5]: both texts' first and last token, and whether the second is of another
        document; the lines that the next pairs begin with), of int64[m] documents.
        """
        target, last = self.target[document], self.documents[document + 1]
        end = self._reaching(line, target, last)
        # Where there is but one line, nothing of the document is left to go on with.
        split = line + self.rng.integers(1, np.maximum(end - line - 1, 1), endpoint=True)
        other = (end - line == 1) | (self.rng.random(len(line)) < 0.5)
        follow, stop = self._elsewhere(document, target - self._tokens(line, split))
        follow, stop = np.where(other, follow, split), np.where(other, stop, end)
        pairs = self._cut(line, split, follow, stop)
        return np.stack([*pairs, other], axis=1), np.where(other, split, end)

    def _tokens(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        return self.lines[end] - self.lines[begin]

    def _reaching(self, line: np.ndarray, target: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The end of the lines from `line` on that have `target` tokens or more; at most `last`."""
        end = np.searchsorted(self.lines, self.lines[line] + target)
        return np.minimum(np.maximum(end, line + 1), last)

    def _elsewhere(self, document: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lines of another document, from a random one on, that have `target` tokens or more."""
        count = len(self.documents) - 1
        other = self.rng.integers(count, size=len(document))
        for _ in range(_TRIES - 1):
            (same,) = np.nonzero(other == document)
            other[same] = self.rng.integers(count, size=len(same))
        begin = self.rng.integers(self.documents[other], self.documents[other + 1])
        return begin, self._reaching(begin, np.maximum(target, 1), self.documents[other + 1])

    def _cut(
        self, a: np.ndarray, a_end: np.ndarray, b: np.ndarray, b_end: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Begin and end of both texts in tokens; the longer is cut first, at random ends."""
        first, second = self._tokens(a, a_end), self._tokens(b, b_end)
        kept = shares(first, second, self.length)
        ranges: list[np.ndarray] = []
        for line, size, share in zip((a, b), (first, second), kept, strict=True):
            begin = self.lines[line] + self.rng.binomial(size - share, 0.5)
            ranges += [begin, begin + share]
        return tuple(ranges)


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
