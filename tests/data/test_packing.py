"""Packing: no row too long or too full, nothing lost, little padding, exact arrays."""

import numpy as np
import pytest

from jaxllm.data.corpus import Examples, ReadReport
from jaxllm.data.packing import (
    Rows,
    bucket,
    fill_packed,
    fill_padded,
    first_fit,
    one_per_row,
    slots,
)


def make_examples(lengths, labels=None) -> Examples:
    """Examples whose tokens are all different: 1000 * (index + 1) + position."""
    lengths = np.asarray(lengths)
    tokens = np.concatenate([1000 * (i + 1) + np.arange(n) for i, n in enumerate(lengths)])
    return Examples(
        tokens.astype(np.int32),
        (np.arange(len(tokens)) % 2).astype(np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels,
        np.arange(1, len(lengths) + 1),
        ReadReport(),
    )


# Every twentieth of the token counts of the SST-2 training part (bert-base-uncased).
SST2 = [3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 13, 14, 16, 18, 20, 23, 27, 33, 66]


def sst2_like_lengths(rng, count: int) -> np.ndarray:
    """Token counts distributed as in the SST-2 training part: 3 to 66, 13.3 on average."""
    return np.interp(rng.random(count), np.linspace(0, 1, 21), SST2).round().astype(int)


@pytest.mark.parametrize(("row_length", "window"), [(128, 1024), (64, 1024), (66, 7), (512, 1024)])
def test_rows_hold_every_example_once_within_the_limits(rng, row_length, window):
    lengths = np.minimum(sst2_like_lengths(rng, 5000), row_length)
    order = rng.permutation(5000)[:4321]
    rows = first_fit(lengths, order, row_length=row_length, max_per_row=9, window=window)
    assert sorted(rows.members) == sorted(order)
    counts = np.diff(rows.starts)
    assert counts.min() >= 1
    assert counts.max() <= 9
    sums = np.add.reduceat(lengths[rows.members], rows.starts[:-1])
    assert sums.max() <= row_length


def test_rows_never_mix_windows(rng):
    lengths, order = np.full(100, 3), rng.permutation(100)
    rows = first_fit(lengths, order, row_length=64, max_per_row=16, window=10)
    window_of = np.empty(100, int)
    window_of[order] = np.arange(100) // 10
    for r in range(rows.height):
        assert len(set(window_of[rows.members[rows.starts[r] : rows.starts[r + 1]]])) == 1


@pytest.mark.parametrize("row_length", [64, 128])
def test_sst2_like_lengths_fill_95_percent(rng, row_length):
    lengths = np.minimum(sst2_like_lengths(rng, 20000), row_length)
    assert 13 < lengths.mean() < 14
    rows = first_fit(
        lengths,
        rng.permutation(20000),
        row_length=row_length,
        max_per_row=slots(row_length),
        window=1024,
    )
    assert lengths.sum() / (rows.height * row_length) >= 0.95


def test_a_place_is_taken_in_the_fullest_row_that_has_one():
    lengths = np.array([7, 6, 3, 1])
    rows = first_fit(lengths, np.arange(4), row_length=10, max_per_row=4, window=4)
    assert rows.members.tolist() == [0, 2, 1, 3]
    assert rows.starts.tolist() == [0, 2, 4]


def test_a_row_has_a_slot_for_every_four_tokens():
    assert [slots(n) for n in (3, 7, 8, 128)] == [1, 1, 2, 32]


def test_a_row_takes_as_many_examples_as_it_may():
    rows = first_fit(np.full(7, 2), np.arange(7), row_length=20, max_per_row=3, window=7)
    assert rows.starts.tolist() == [0, 3, 6, 7]
    alone = first_fit(np.full(2, 2), np.arange(2), row_length=20, max_per_row=1, window=7)
    assert alone.starts.tolist() == [0, 1, 2]


def test_the_shortest_and_the_longest_examples_find_their_places():
    lengths = np.array([1, 4, 1, 1])
    rows = first_fit(lengths, np.arange(4), row_length=4, max_per_row=4, window=4)
    assert rows.members.tolist() == [1, 0, 2, 3]
    assert rows.starts.tolist() == [0, 1, 4]
    rows = first_fit(lengths, np.array([], int), row_length=4, max_per_row=4, window=4)
    assert (rows.members.tolist(), rows.starts.tolist()) == ([], [0])


def test_a_length_over_the_row_is_refused():
    with pytest.raises(ValueError, match="row_length=4"):
        first_fit(np.array([3, 5]), np.arange(2), row_length=4, max_per_row=2, window=8)
    with pytest.raises(ValueError, match="row_length=4"):
        first_fit(np.array([3, 0]), np.arange(2), row_length=4, max_per_row=2, window=8)


def test_rows_between_and_permuted():
    rows = Rows(np.array([5, 6, 7, 8, 9]), np.array([0, 2, 3, 5]))
    part = rows.between(1, 9)
    assert (part.members.tolist(), part.starts.tolist()) == ([7, 8, 9], [0, 1, 3])
    assert rows.between(3, 5).height == 0
    other = rows.permuted(np.array([2, 0, 1]))
    assert (other.members.tolist(), other.starts.tolist()) == ([8, 9, 5, 6, 7], [0, 2, 4, 5])


def test_fill_packed_places_tokens_segments_positions_heads_and_labels():
    examples = make_examples([3, 2, 4], labels=np.array([7, 8, 9], np.int32))
    rows = Rows(np.array([2, 1, 0]), np.array([0, 2, 3]))
    batch = fill_packed(examples, rows, row_length=8, max_per_row=3, height=3)
    zeros = [0] * 8
    assert batch["input_ids"].tolist() == [
        [3000, 3001, 3002, 3003, 2000, 2001, 0, 0],
        [1000, 1001, 1002, 0, 0, 0, 0, 0],
        zeros,
    ]
    assert batch["segment_ids"].tolist() == [
        [1, 1, 1, 1, 2, 2, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        zeros,
    ]
    # Types alternate over the flat tokens: 0 1 0 | 1 0 | 1 0 1 0.
    assert batch["token_type_ids"].tolist() == [
        [1, 0, 1, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        zeros,
    ]
    assert batch["head_positions"].tolist() == [[0, 4, 0], [0, 0, 0], [0, 0, 0]]
    assert batch["labels"].tolist() == [[9, 8, 0], [7, 0, 0], [0, 0, 0]]
    assert batch["label_weights"].tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    for name, array in batch.items():
        assert array.dtype == (np.float32 if name == "label_weights" else np.int32), name


@pytest.mark.parametrize("labels", [np.array([0.5, 2], np.float32), np.eye(2, dtype=np.float32)])
def test_fill_packed_keeps_float_labels(labels):
    rows = Rows(np.array([1, 0]), np.array([0, 2]))
    batch = fill_packed(make_examples([2, 2], labels), rows, row_length=6, max_per_row=3, height=2)
    assert batch["labels"].shape == (2, 3, *labels.shape[1:])
    assert batch["labels"].dtype == np.float32
    np.testing.assert_array_equal(batch["labels"][0, :2], labels[::-1])
    assert not batch["labels"][0, 2:].any()
    assert not batch["labels"][1].any()


def test_fill_padded_is_one_example_a_row_and_needs_no_labels():
    examples = make_examples([3, 2, 4])
    batch = fill_padded(examples, np.array([1, 2]), row_length=4, height=3)
    assert batch["input_ids"].tolist() == [[2000, 2001, 0, 0], [3000, 3001, 3002, 3003], [0] * 4]
    assert batch["segment_ids"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0] * 4]
    assert batch["label_weights"].tolist() == [[1], [1], [0]]
    assert "labels" not in batch


def test_fill_of_no_rows_is_empty():
    batch = fill_packed(
        make_examples([3]), one_per_row(np.array([], int)), row_length=4, max_per_row=1, height=2
    )
    assert batch["input_ids"].shape == (2, 4)
    assert not any(array.any() for array in batch.values())


def test_bucket_is_the_least_that_holds_the_longest_and_never_over_max_length():
    buckets = [32, 64, 128, 256]
    assert [bucket(n, buckets, 256) for n in (1, 32, 33, 200)] == [32, 32, 64, 256]
    assert bucket(70, buckets, 100) == 100
    assert bucket(64, buckets, 100) == 64
