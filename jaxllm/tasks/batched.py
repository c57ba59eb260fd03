"""Rows of tokens through a model in a few static shapes; what prediction of every task needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

SHORTEST_ROW = 16  # rows are padded to this many tokens times a power of two, up to the longest


@dataclass(frozen=True)
class Row:
    """One row of a batch: `tokens` int [T], `type_ids` int [T]."""

    tokens: np.ndarray
    type_ids: np.ndarray


def run(
    rows: Sequence[Row],
    forward: Callable[[dict[str, np.ndarray]], Any],
    *,
    batch_size: int,
    max_length: int,
) -> list[Any]:
    """The model's outputs for each row, in the order of the rows.

    `forward` takes `input_ids`, `token_type_ids` and `segment_ids` int32 [batch_size, T] and gives
    a tree of device arrays with that leading axis; an output is the tree of one row, in numpy. T
    is SHORTEST_ROW times a power of two, or `max_length`: few shapes compile. Rows are sorted by
    length, and all batches are dispatched before the first is read: the device never waits.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pending = [forward(_batch([rows[i] for i in b], batch_size, max_length)) for b in batches]
    result: list[Any] = [None] * len(rows)
    for batch, outputs in zip(batches, pending, strict=True):
        outputs = jax.device_get(outputs)
        for slot, i in enumerate(batch):
            result[i] = jax.tree.map(lambda x, slot=slot: x[slot], outputs)
    return result


def _batch(rows: list[Row], batch_size: int, max_length: int) -> dict[str, np.ndarray]:
    longest = max(len(row.tokens) for row in rows)
    length = SHORTEST_ROW
    while length < longest:
        length *= 2
    shape = (batch_size, min(length, max_length))
    names = ("input_ids", "token_type_ids", "segment_ids")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    for i, row in enumerate(rows):
        count = len(row.tokens)
        batch["input_ids"][i, :count] = row.tokens
        batch["token_type_ids"][i, :count] = row.type_ids
        batch["segment_ids"][i, :count] = 1
    return batch
