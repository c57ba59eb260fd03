"""Masked language modelling: which tokens are asked for, and what stands in their place.

Masks are a function of (seed, epoch, example number) alone, so they do not depend on batches, hosts
or where a run was resumed, and every epoch has new ones.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxllm.data.philox import below, philox, uniform

_TOKENS, _EXAMPLES = 0, 1  # streams of random numbers

# Span lengths in words: geometric with p = 0.2, at most 10; 3.8 on average (Joshi et al., 2019).
_SPAN_P, _LONGEST_SPAN = 0.2, 10
_SPAN_ENDS = np.cumsum((1 - _SPAN_P) ** np.arange(_LONGEST_SPAN))
_SPAN_ENDS /= _SPAN_ENDS[-1]


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    Attributes:
        unit: "token": each on its own (Devlin et al., 2018); "word": all pieces of a word or none;
            "span": runs of whole words (Joshi et al., 2019), the last one cut where the rate is
            reached.
        rate: share of the tokens of an example that are asked for, exact on average whatever the
            lengths; special tokens do not count.
        mask_id: the token [MASK].
        ordinary: bool[V], tokens that may be asked for and may stand in for others; special ones
            may not.
        masked: share of the asked tokens that become [MASK].
        random: share that become an ordinary token at random; the rest stays as it is.
    """

    unit: Literal["token", "word", "span"]
    rate: float
    mask_id: int
    ordinary: np.ndarray
    masked: float = 0.8
    random: float = 0.1


def mask(
    masking: Masking,
    tokens: np.ndarray,
    starts: np.ndarray,
    offsets: np.ndarray,
    numbers: np.ndarray,
    *,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(int32[total] tokens with masks, bool[total] the tokens asked for) of m examples.

    Args:
        masking: how.
        tokens: int32[total], the examples one after the other, special tokens included.
        starts: bool[total], tokens that begin a word.
        offsets: int64[m + 1]; example i is ``tokens[offsets[i]:offsets[i + 1]]``.
        numbers: int64[m], what tells an example from all others of the epoch.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(tokens)) - offsets[owner]
    score, kind, replacement, length = philox((seed, epoch), numbers[owner], position, _TOKENS)
    at = np.flatnonzero(masking.ordinary[tokens])  # what may be asked for; all below is about these
    score, owner = score[at], owner[at]
    room = _rooms(masking.rate, np.bincount(owner, minlength=len(lengths)), numbers, seed, epoch)
    if masking.unit == "token":
        chosen, source = lowest(score, owner, room), at
    else:
        # A special token ends a word: neither words nor spans go past [SEP].
        first = starts[at] | (np.diff(at, prepend=-2) != 1)
        first[1:] |= owner[1:] != owner[:-1]
        if masking.unit == "word":
            chosen, source = _whole_words(score, owner, first, room), at
        else:
            run = np.cumsum(np.diff(at, prepend=-2) != 1) + owner
            lengths_in_words = 1 + np.searchsorted(_SPAN_ENDS, uniform(length[at]), "right")
            priority, anchor = _spans(score, lengths_in_words, first, run)
            chosen, source = lowest(priority, owner, room), at[anchor]
    asked = np.zeros(len(tokens), bool)
    asked[at[chosen]] = True
    drawn = uniform(kind[source[chosen]])
    ordinary = np.flatnonzero(masking.ordinary)
    other = ordinary[below(replacement[at[chosen]], len(ordinary))]
    result = tokens.copy()
    result[asked] = np.select(
        [drawn < masking.masked, drawn < masking.masked + masking.random],
        [masking.mask_id, other],
        tokens[asked],
    )
    return result, asked


def _rooms(
    rate: float, counts: np.ndarray, numbers: np.ndarray, seed: int, epoch: int
) -> np.ndarray:
    """int64[m]: how many tokens of each example are asked for: rate * count, rounded at random.

    BERT's max(1, round(...)) asks for a third of a text of three tokens, not for 15 %.
    """
    bits = philox((seed, epoch), numbers, np.zeros_like(numbers), _EXAMPLES)[0]
    return np.floor(rate * counts + uniform(bits)).astype(np.int64)


def _by_owner(owner: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The order of rising scores within each owner; `owner` rises, scores have 32 bits."""
    return np.argsort((owner.astype(np.uint64) << np.uint64(32)) | score, kind="stable")


def lowest(score: np.ndarray, owner: np.ndarray, room: np.ndarray) -> np.ndarray:
    """bool[n]: the ``room[owner]`` items of each owner with the lowest scores, ties in order."""
    order = _by_owner(owner, score)
    begins = np.searchsorted(owner, np.arange(len(room)))
    chosen = np.empty(len(score), bool)
    chosen[order] = np.arange(len(score)) - begins[owner] < room[owner]
    return chosen


def _whole_words(
    score: np.ndarray, owner: np.ndarray, first: np.ndarray, room: np.ndarray
) -> np.ndarray:
    """bool[n]: words in the order of their scores, each that still fits its owner's room.

    As in BERT's create_pretraining_data: a word too long for what is left is passed over. A round
    of the loop goes on to the next word of each owner that does not fit.
    """
    word_of = np.cumsum(first) - 1
    begins = np.flatnonzero(first)
    sizes = np.diff(begins, append=len(first))
    score, owner = score[begins], owner[begins]
    queue = _by_owner(owner, score)  # the words not yet decided
    taken = np.zeros(len(begins), bool)
    left = room.copy()
    while len(queue := queue[sizes[queue] <= left[owner[queue]]]):
        used = np.cumsum(sizes[queue])
        head = np.flatnonzero(np.diff(owner[queue], prepend=-1))
        before = np.repeat(used[head] - sizes[queue[head]], np.diff(head, append=len(queue)))
        fits = used - before <= left[owner[queue]]
        # Only the words in front of the first that does not fit; sizes are at least 1, so `fits`
        # never comes back once it is gone.
        taken[queue[fits]] = True
        np.subtract.at(left, owner[queue[fits]], sizes[queue[fits]])
        queue = queue[~fits]
    return taken[word_of]


def _spans(
    score: np.ndarray, lengths: np.ndarray, first: np.ndarray, run: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each token the score of the best span over it, and the token which that span begins at.

    A span could begin at any word; spans in the order of their scores, until the room is used up,
    are the paper's repeated draws. `lengths` are in words, `run` differs where no span may go on.
    """
    word_of = np.cumsum(first) - 1
    begins = np.flatnonzero(first)
    score, lengths, run = score[begins], lengths[begins], run[begins]
    best, anchor = score.copy(), begins.copy()
    for back in range(1, min(_LONGEST_SPAN, len(begins))):
        better = (
            (lengths[:-back] > back) & (run[:-back] == run[back:]) & (score[:-back] < best[back:])
        )
        best[back:][better] = score[:-back][better]
        anchor[back:][better] = begins[:-back][better]
    return best[word_of], anchor[word_of]
