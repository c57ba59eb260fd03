"""Examples to rows of a fixed length, and rows to the arrays of a batch."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class TokenArrays(Protocol):
    """What `fill_packed` needs of examples: `corpus.Examples` has it, and more."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def type_ids(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray | None: ...


class Rows(NamedTuple):
    """Which examples each row holds, in order.

    Attributes:
        members: int64[n] example indices, row after row.
        starts: int64[R + 1]; row r holds ``members[starts[r]:starts[r + 1]]``.
    """

    members: np.ndarray
    starts: np.ndarray

    @property
    def height(self) -> int:
        """R, the number of rows."""
        return len(self.starts) - 1

    def between(self, first: int, last: int) -> "Rows":
        """Rows `first` to `last` (excluded), fewer where there are no more."""
        starts = self.starts[min(first, self.height) : last + 1]
        return Rows(self.members[starts[0] : starts[-1]], starts - starts[0])

    def spread(
        self, lengths: np.ndarray, row_length: int, height: int, **values: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Arrays [height, row_length] of the `values` of all tokens of the members, which have
        `lengths` int64[n], and ``segment_ids``; 0 where there is none.
        """
        counts, bounds = np.diff(self.starts), starts_of(lengths)
        row = np.repeat(np.arange(self.height), counts)
        slot = np.arange(len(self.members)) - np.repeat(self.starts[:-1], counts)
        column = bounds[:-1] - bounds[self.starts[:-1]][row]
        target = ranges(row * row_length + column, lengths, bounds)
        segments = np.repeat(slot + 1, lengths).astype(np.int32)
        batch = {}
        for name, tokens in {**values, "segment_ids": segments}.items():
            array = np.zeros(height * row_length, tokens.dtype)
            array[target] = tokens
            batch[name] = array.reshape(height, row_length)
        return batch

    def permuted(self, order: np.ndarray) -> "Rows":
        """The rows in another order."""
        counts = np.diff(self.starts)[order]
        starts = starts_of(counts)
        return Rows(self.members[ranges(self.starts[order], counts, starts)], starts)


def first_fit(
    lengths: np.ndarray, order: np.ndarray, *, row_length: int, max_per_row: int, window: int
) -> Rows:
    """Puts the examples of `order` into rows, looking for a place among `window` of them at a time.

    First-fit decreasing with the open rows kept by the space that is left in them: the examples of
    a window are taken longest first, and each goes into a row with the least space that will do.
    Finding it is a look at the lowest set bit of an integer, so the time is linear. A pure function
    of its arguments.

    Args:
        lengths: int[n], tokens of each example, 1 to `row_length`.
        order: int[m], the examples to place.
        row_length: tokens of a row.
        max_per_row: examples of a row at most.
        window: examples considered together; rows are never shared between windows.

    Raises:
        ValueError: an example is longer than a row, or has no token.
    """
    if len(order) and not 1 <= lengths[order].min() <= lengths[order].max() <= row_length:
        raise ValueError(f"lengths must be 1 to row_length={row_length}")
    members = np.empty(len(order), np.int64)
    row_of = np.empty(len(order), np.int64)
    height = 0
    for start in range(0, len(order), window):
        block = order[start : start + window]
        block = block[np.argsort(-lengths[block], kind="stable")]
        assigned, height = _place(lengths[block].tolist(), row_length, max_per_row, height)
        members[start : start + window] = block
        row_of[start : start + window] = assigned
    by_row = np.argsort(row_of, kind="stable")
    return Rows(members[by_row], starts_of(np.bincount(row_of)))


def _place(
    lengths: list[int], row_length: int, max_per_row: int, height: int
) -> tuple[list[int], int]:
    """A row for each length, new rows counting from `height`; and the height after them."""
    open_rows: list[list[tuple[int, int]]] = [[] for _ in range(row_length)]
    spaces = 0  # bit s is set where open_rows[s], rows with s tokens of space, is not empty
    assigned = []
    for length in lengths:
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1
            row, count = open_rows[space].pop()
            if not open_rows[space]:
                spaces ^= 1 << space
        else:
            space, row, count = row_length, height, 0
            height += 1
        assigned.append(row)
        if count + 1 < max_per_row and space > length:
            open_rows[space - length].append((row, count + 1))
            spaces |= 1 << (space - length)
    return assigned, height


def one_per_row(members: np.ndarray) -> Rows:
    """Rows of a single example each."""
    return Rows(np.asarray(members, np.int64), np.arange(len(members) + 1))


def slots(row_length: int) -> int:
    """P, the examples that a packed row holds at most: four tokens each, on average."""
    return max(1, row_length // 4)


def fill_packed(
    examples: TokenArrays, rows: Rows, *, row_length: int, max_per_row: int, height: int
) -> dict[str, np.ndarray]:
    """The batch of `rows`, with empty rows below them up to `height`. B = height, T = row_length.

    Gives ``input_ids``, ``segment_ids``, ``token_type_ids`` int32 [B, T],
    ``head_positions`` int32 [B, P], ``label_weights`` float32 [B, P] (0 for an empty slot), and, if
    the examples have labels, ``labels`` int32 [B, P] | float32 [B, P] | float32 [B, P, C].
    """
    members = rows.members
    begins = examples.offsets[members]
    lengths = examples.offsets[members + 1] - begins
    counts = np.diff(rows.starts)
    row = np.repeat(np.arange(rows.height), counts)
    slot = np.arange(len(members)) - np.repeat(rows.starts[:-1], counts)
    ends = starts_of(lengths)
    column = ends[:-1] - ends[rows.starts[:-1]][row]  # where in its row an example begins
    position = ranges(np.zeros_like(begins), lengths, ends)
    source = np.repeat(begins, lengths) + position
    target = np.repeat(row * row_length + column, lengths) + position

    def spread(values: np.ndarray) -> np.ndarray:
        array = np.zeros(height * row_length, np.int32)
        array[target] = values
        return array.reshape(height, row_length)

    def gather(values: np.ndarray) -> np.ndarray:
        array = np.zeros((height, max_per_row, *values.shape[1:]), values.dtype)
        array[row, slot] = values
        return array

    batch = {
        "input_ids": spread(examples.tokens[source]),
        "segment_ids": spread(np.repeat(slot + 1, lengths)),
        "token_type_ids": spread(examples.type_ids[source]),
        "head_positions": gather(column.astype(np.int32)),
        "label_weights": gather(np.ones(len(members), np.float32)),
    }
    if examples.labels is not None:
        batch["labels"] = gather(np.asarray(examples.labels[members]))
    return batch


def fill_padded(
    examples: TokenArrays, members: np.ndarray, *, row_length: int, height: int
) -> dict[str, np.ndarray]:
    """The batch of `members`, one a row: as `fill_packed` with P = 1."""
    rows = one_per_row(members)
    return fill_packed(examples, rows, row_length=row_length, max_per_row=1, height=height)


def bucket(longest: int, buckets: Sequence[int], max_length: int) -> int:
    """The least of `buckets` that holds `longest` tokens; `max_length` where none below it does."""
    return min((b for b in buckets if longest <= b < max_length), default=max_length)


def starts_of(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def ranges(firsts: np.ndarray, counts: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """``firsts[i], firsts[i] + 1, …`` of ``counts[i]`` numbers each, one after the other."""
    return np.arange(starts[-1]) + np.repeat(firsts - starts[:-1], counts)
