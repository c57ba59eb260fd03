"""The texts of a workload: random tokens from a fixed seed, the same for every side."""

from dataclasses import dataclass

import numpy as np

from benchmarks.workloads import MASKED, Workload

BATCHES = 4  # different ones, gone through in turns
GATE_ROWS = 4
MASK, FIRST = 4, 5  # ids


@dataclass(frozen=True)
class Text:
    """Tokens, some of them masked; what the masked ones were; a label for the whole."""

    ids: np.ndarray
    masked: np.ndarray
    originals: np.ndarray
    label: int


def texts(workload: Workload, vocabulary: int, count: int) -> list[Text]:
    """The first `count` texts of a workload."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        length = _length(rng, workload)
        ids = rng.integers(FIRST, vocabulary, length, dtype=np.int32)
        masked = np.sort(rng.permutation(length)[: max(1, round(MASKED * length))])
        originals = ids[masked]
        if workload.kind == "mlm":
            ids[masked] = MASK
        found.append(Text(ids, masked, originals, int(rng.integers(2))))
    return found


def digest(x_ND: np.ndarray) -> float:
    """A figure of the vectors of all tokens, in any order, that a norm at their end leaves free."""
    direction_D = np.cos(np.arange(x_ND.shape[1]))
    return float(np.square(x_ND.astype(np.float64) @ direction_D).mean())


def _length(rng: np.random.Generator, workload: Workload) -> int:
    longest = workload.length
    if workload.texts == "uniform":
        return int(rng.integers(longest // 8, longest + 1))
    if workload.texts == "normal":  # ModernBERT's protocol: N(256, 64) in rows of 512
        return int(np.clip(rng.normal(longest / 2, longest / 8), longest // 32, longest))
    return longest
