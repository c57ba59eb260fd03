"""The loader: a function of seed and epoch, resumable anywhere, the same on any number of hosts."""

import dataclasses
import gc
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_packing import make_examples, sst2_like_lengths

from jaxllm.config.reading import DataConfig
from jaxllm.data.loader import LoaderState, TrainLoader, eval_batches
from jaxllm.errors import InputError

COUNT = 203
START = LoaderState()
PACKED = DataConfig(train=["-"], max_length=64, pack_window=50)
PADDED = dataclasses.replace(PACKED, packing=False, buckets=[16, 32, 64, 128])
BOTH = pytest.mark.parametrize("data", [PACKED, PADDED], ids=["packed", "padded"])


@pytest.fixture
def examples(rng):
    labels = np.arange(COUNT, dtype=np.int32)
    return make_examples(np.minimum(sst2_like_lengths(rng, COUNT), 64), labels)


def loader(examples, data, **kwargs) -> TrainLoader:
    return TrainLoader(examples, data=data, **{"batch_size": 16, "seed": 3, **kwargs})


def take(train_loader, count, start=START):
    batches = train_loader.batches(start)
    result = [next(batches) for _ in range(count)]
    batches.close()
    return result


def arrays(batches):
    return [{name: np.asarray(array) for name, array in b.arrays.items()} for b in batches]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@BOTH
def test_two_loaders_agree_and_other_seeds_and_epochs_differ(examples, data):
    steps = loader(examples, data).steps_in_epoch(0)
    first = arrays(take(loader(examples, data), steps))
    assert_same(first, arrays(take(loader(examples, data), steps)))
    other_seed = arrays(take(loader(examples, data, seed=4), 1))
    other_epoch = arrays(take(loader(examples, data), 1, LoaderState(1, 0)))
    for other in (other_seed, other_epoch):
        assert other[0]["input_ids"].tobytes() != first[0]["input_ids"].tobytes()


@BOTH
def test_resuming_anywhere_equals_an_uninterrupted_run(examples, data):
    train_loader = loader(examples, data)
    steps = train_loader.steps_in_epoch(0)
    whole = take(train_loader, steps + 3)
    for done in (1, steps // 2, steps - 1, steps, steps + 1):
        state = LoaderState(**dataclasses.asdict(whole[done - 1].next_state))
        rest = take(loader(examples, data), steps + 3 - done, state)
        assert_same(arrays(rest), arrays(whole[done:]))
        assert [b.next_state for b in rest] == [b.next_state for b in whole[done:]]
    assert whole[steps - 1].next_state == LoaderState(1, 0)


@BOTH
def test_every_example_comes_once_an_epoch_and_is_counted(examples, data):
    train_loader = loader(examples, data)
    seen = take(train_loader, train_loader.steps_in_epoch(0))
    rows = np.concatenate([b.example_rows for b in seen])
    assert sorted(rows) == sorted(examples.rows)
    labels = []
    for b in seen:
        batch = arrays([b])[0]
        assert batch["input_ids"].shape == batch["segment_ids"].shape
        assert b.real_tokens == np.count_nonzero(batch["segment_ids"])
        assert b.padded_tokens == batch["segment_ids"].size
        assert b.examples == batch["label_weights"].sum() == len(b.example_rows)
        assert (b.example_rows == examples.rows[b.members]).all()
        assert batch["label_weights"].shape[0] == train_loader.rows_per_batch
        labels.extend(batch["labels"][batch["label_weights"] > 0])
        # An example's first token names the example.
        first = np.take_along_axis(batch["input_ids"], batch["head_positions"], 1)
        real = batch["label_weights"] > 0
        np.testing.assert_array_equal(first[real], 1000 * (batch["labels"][real] + 1))
    assert sorted(labels) == list(range(COUNT))


def test_packed_rows_are_shuffled_and_full(examples):
    train_loader = loader(examples, dataclasses.replace(PACKED, pack_window=1024))
    batches = take(train_loader, train_loader.steps_in_epoch(0))
    assert sum(b.real_tokens for b in batches) / sum(b.padded_tokens for b in batches[:-1]) > 0.95
    # The packing puts the longest first; after the shuffle the first batch has them not all.
    longest = [int((arrays([b])[0]["input_ids"] % 1000).max()) for b in batches]
    assert longest != sorted(longest, reverse=True)


def test_packed_batches_hold_about_batch_size_examples(rng):
    many = make_examples(sst2_like_lengths(rng, 4000))
    data = dataclasses.replace(PACKED, max_length=128)
    train_loader = loader(many, data, batch_size=64)
    mean = len(many) / train_loader.steps_in_epoch(0)
    assert abs(mean - 64) < 8
    assert loader(many, data, batch_size=64, shards=4).rows_per_batch == 8
    assert loader(many, data, batch_size=4, shards=4).rows_per_batch == 4


def test_padded_batches_have_similar_lengths_few_shapes_and_shuffled_order(rng):
    many = make_examples(np.minimum(sst2_like_lengths(rng, 1600), 64))
    train_loader = loader(many, dataclasses.replace(PADDED, pack_window=1600))
    batches = take(train_loader, train_loader.steps_in_epoch(0))
    shapes = [b.arrays["input_ids"].shape for b in batches]
    assert set(shapes) == {(16, 16), (16, 32), (16, 64)}
    real = sum(b.real_tokens for b in batches)
    assert real / sum(b.padded_tokens for b in batches) > 0.5  # unsorted 0.29
    widths = [shape[1] for shape in shapes]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_padded_buckets_are_cut_at_max_length(rng):
    data = dataclasses.replace(PADDED, max_length=40, buckets=[16, 32, 64])
    few = make_examples([40, 33, 5])
    [batch] = take(loader(few, data, batch_size=4), 1)
    assert batch.arrays["input_ids"].shape == (4, 40)


@BOTH
@pytest.mark.parametrize("hosts", [2, 4])
def test_one_host_equals_the_hosts_put_together(examples, data, hosts):
    one = arrays(take(loader(examples, data, shards=4), 5))
    parts = [
        take(loader(examples, data, shards=4, host_index=i, host_count=hosts), 5)
        for i in range(hosts)
    ]
    assert len({p[2].next_state for p in parts}) == 1
    assert len({p[2].real_tokens for p in parts}) == 1
    split = [arrays(p) for p in parts]
    joined = [
        {name: np.concatenate([part[step][name] for part in split]) for name in one[step]}
        for step in range(5)
    ]
    assert_same(one, joined)


def test_rows_that_hosts_cannot_share_are_refused(examples):
    with pytest.raises(InputError, match="=16 is not divisible by 3"):
        loader(examples, PADDED, host_index=0, host_count=3)


@BOTH
@pytest.mark.parametrize("spec", [P("data"), P(("data", "fsdp")), P()])
def test_sharded_batches_are_global_arrays_with_the_same_content(examples, data, spec):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, spec)
    plain = take(loader(examples, data, shards=8), 3)
    placed = take(loader(examples, data, shards=8, sharding=sharding), 3)
    assert_same(arrays(plain), arrays(placed))
    for batch in placed:
        for array in batch.arrays.values():
            assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize("data", [PACKED, PADDED])
def test_a_batch_that_does_not_divide_is_refused(examples, data):
    with pytest.raises(InputError, match=r"train\.batch_size=18 .* by 4.*16 or 20"):
        loader(examples, data, batch_size=18, shards=4)
    with pytest.raises(InputError, match=r"train\.eval_batch_size=3 .* by 4.*choose 4"):
        next(eval_batches(examples, data=data, batch_rows=3, shards=4))


def test_a_state_beyond_the_epoch_is_refused(examples):
    train_loader = loader(examples, PADDED)
    assert train_loader.steps_in_epoch(0) == 13
    with pytest.raises(InputError, match="epoch 0 has 13 steps"):
        train_loader.batches(LoaderState(0, 13))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jaxllm-loader"]


def test_the_thread_ends_when_the_iterator_is_closed_or_forgotten(examples):
    batches = loader(examples, PACKED).batches(START)
    next(batches)
    assert len(loader_threads()) == 1
    batches.close()
    assert not loader_threads()
    batches = loader(examples, PACKED).batches(START)
    next(batches)
    del batches
    gc.collect()
    assert not loader_threads()


def test_leaving_the_program_with_an_open_iterator_is_silent():
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_loader import PACKED, START, TrainLoader
        from test_packing import make_examples

        batches = TrainLoader(make_examples([9] * 99), data=PACKED, batch_size=8, seed=0)
        batches = batches.batches(START)
        next(batches)
        if sys.argv[2] == "error":
            raise SystemExit(3)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parent)]
    for ending, status in (("end", 0), ("error", 3)):
        result = subprocess.run([*command, ending], capture_output=True, text=True, timeout=600)
        assert (result.returncode, "Traceback" in result.stderr) == (status, False), result.stderr


def test_two_batches_wait_on_the_device(examples, monkeypatch):
    train_loader = loader(examples, PACKED)
    loaded = []
    load = train_loader._load
    monkeypatch.setattr(train_loader, "_load", lambda s: loaded.append(s) or load(s))
    batches = train_loader.batches(START, prefetch=2)
    next(batches)
    deadline = time.monotonic() + 600
    while len(loaded) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # a fourth would come at once
    assert len(loaded) == 3
    batches.close()


def test_an_error_in_the_thread_reaches_the_consumer(examples, monkeypatch):
    train_loader = loader(examples, PACKED)
    load = train_loader._load

    def broken(state):
        if state.step == 2:
            raise RuntimeError("the disk is gone")
        return load(state)

    monkeypatch.setattr(train_loader, "_load", broken)
    batches = train_loader.batches(START)
    next(batches)
    next(batches)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(batches)
    assert not loader_threads()


@BOTH
@pytest.mark.parametrize("sharded", [False, True])
def test_eval_batches_hold_every_example_exactly_once(examples, data, sharded):
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), P("data")) if sharded else None
    seen, shapes = [], set()
    for batch, indices in eval_batches(
        examples, data=data, batch_rows=16, shards=8, sharding=sharding
    ):
        assert indices.shape == batch["label_weights"].shape
        real = indices >= 0
        np.testing.assert_array_equal(real, np.asarray(batch["label_weights"]) > 0)
        np.testing.assert_array_equal(indices[real], np.asarray(batch["labels"])[real])
        seen.extend(indices[real])
        shapes.add(batch["input_ids"].shape)
    assert sorted(seen) == list(range(COUNT))
    assert shapes == ({(16, 64)} if data.packing else {(16, 16), (16, 32), (16, 64)})
