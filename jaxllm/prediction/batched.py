"""Rows to answers, in every task alike: tokens through a model in a few static shapes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxllm.prediction.inputs import InputFormat, RowError

BatchSizes = tuple[int, int]  # rows of a batch: the fewest that the devices can share, the usual
SHORTEST_ROW = 16  # rows are padded to this many tokens times a power of two, up to the longest
WINDOW_BATCHES = 32  # rows whose tokens and outputs are held at a time: this many batches


@dataclass(frozen=True)
class Row:
    """One row of a batch: `tokens` int [T], `type_ids` int [T]."""

    tokens: np.ndarray
    type_ids: np.ndarray


@dataclass(frozen=True)
class EncodedLine:
    """What a line asks, as the model takes it.

    rows: one or more. truncated: whether text was cut. asked: what `Predictor.answer` needs besides
    the outputs of the rows.
    """

    rows: list[Row]
    truncated: bool
    asked: Any


@dataclass(frozen=True)
class Predictor(ABC):
    """Answers lines of one task; a line is a row as a user gives it, a value of JSON.

    A line is answered with an `error` and its number where it cannot be read or answered, and where
    the model's outputs for it are not finite. `truncated` is true where text was cut.

    forward: see `run`.
    """

    form: InputFormat
    batch_sizes: BatchSizes
    forward: Callable[[dict[str, np.ndarray]], Any]

    @abstractmethod
    def parse(self, row: Any) -> Any:
        """What a line asks; RowError where that cannot be told."""

    @abstractmethod
    def encode(self, asked: list[Any]) -> list[EncodedLine | RowError]:
        """What `parse` found in some lines, as tokens."""

    @abstractmethod
    def answer(self, asked: Any, outputs: list[Any]) -> dict[str, Any]:
        """The answer out of the outputs of the rows of a line; RowError where there is none."""

    @property
    def window(self) -> int:
        """How many lines are best answered at a time."""
        return self.batch_sizes[1] * WINDOW_BATCHES

    def answers(self, lines: Sequence[Any], first_line: int) -> list[dict[str, Any]]:
        """One answer for each line; `first_line` is the number of the first, from 1.

        A RowError among the lines stands for one that could not be read.
        """
        results: list[dict[str, Any] | RowError] = [{} for _ in lines]
        parsed: dict[int, Any] = {}
        for i, line in enumerate(lines):
            try:
                if isinstance(line, RowError):
                    raise line
                parsed[i] = self.parse(line)
            except RowError as error:
                results[i] = error
        asked = list(parsed.values())
        encoded = dict(zip(parsed, self.encode(asked) if asked else [], strict=True))
        rows = [row for one in encoded.values() if isinstance(one, EncodedLine) for row in one.rows]
        outputs = iter(run(rows, self.forward, self.batch_sizes, max_length=self.form.max_length))
        for i, one in encoded.items():
            try:
                results[i] = self._answer(one, outputs)
            except RowError as error:
                results[i] = error
        return [
            {"error": str(result), "line": first_line + i}
            if isinstance(result, RowError)
            else result
            for i, result in enumerate(results)
        ]

    def _answer(self, line: EncodedLine | RowError, outputs: Iterator[Any]) -> dict[str, Any]:
        if isinstance(line, RowError):
            raise line
        own = [next(outputs) for _ in line.rows]
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(own)):
            raise RowError(
                "the model's numbers for this line are not finite; check that its weights and its "
                "config.json are whole"
            )
        answer = self.answer(line.asked, own)
        return answer | {"truncated": True} if line.truncated else answer


def run(
    rows: Sequence[Row],
    forward: Callable[[dict[str, np.ndarray]], Any],
    batch_sizes: BatchSizes,
    *,
    max_length: int,
) -> list[Any]:
    """The model's outputs for each row, in the order of the rows.

    `forward` takes `input_ids`, `token_type_ids` and `segment_ids` int32 [B, T] and gives a tree of
    device arrays with that leading axis; an output is the tree of one row, in numpy. B is the
    usual size of a batch, or the least where that holds all rows: whoever waits for one answer
    does not wait for a batch of padding. T is SHORTEST_ROW times a power of two, or `max_length`:
    few shapes compile. Rows are sorted by length, and all batches are dispatched before the first
    is read: the device never waits.
    """
    least, usual = batch_sizes
    batch_size = least if len(rows) <= least else usual
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
