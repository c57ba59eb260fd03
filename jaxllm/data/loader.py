"""Batches on the device, in an order that depends on the seed and the epoch alone."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.packing import Rows, bucket, first_fit, one_per_row
from jaxllm.data.prefetch import prefetched
from jaxllm.errors import InputError

logger = logging.getLogger("jaxllm")

_FILL = 0.97  # share of real tokens in packed rows that rows_per_batch counts on


@dataclass(frozen=True)
class LoaderState:
    """Where the next batch is: `step` of `epoch`, both from 0. Independent of the hosts."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class LoadedBatch:
    """A batch and what it holds, counted over all hosts.

    Attributes:
        arrays: on the device, what `examples.fill` gives.
        real_tokens: tokens of text and special tokens.
        padded_tokens: B * T.
        examples: number of examples.
        members: int64[examples], which of the epoch's examples these are.
        example_rows: int64[examples], the examples' row numbers in their files.
        next_state: where the batch after this one is.
    """

    arrays: dict[str, jax.Array]
    real_tokens: int
    padded_tokens: int
    examples: int
    members: np.ndarray
    example_rows: np.ndarray
    next_state: LoaderState


class EpochExamples(Protocol):
    """n examples, and how they become batches; `corpus.Examples` says what each of these is."""

    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def text_lengths(self) -> np.ndarray: ...
    @property
    def rows(self) -> np.ndarray: ...
    def __len__(self) -> int: ...
    def lengths_of(self, members: np.ndarray) -> np.ndarray: ...
    def slots(self, row_length: int, *, packing: bool) -> int: ...
    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]: ...


class TrainExamples(Protocol):
    """What to train on, which may be other examples in each epoch."""

    @property
    def fingerprint(self) -> int:
        """A checksum of all of it."""

    def at(self, epoch: int) -> EpochExamples:
        """The examples of an epoch; asked for often, so kept where it takes time to make them."""


class TrainLoader:
    """Endless training batches, the same for the same seed wherever they start.

    Every host plans the whole epoch and builds only its own rows. The last batch of an epoch is
    filled with empty rows, never dropped.

    Args:
        examples: what to train on.
        data: packing, lengths and buckets.
        batch_size: examples of a batch; of packed rows, on average.
        seed: of the order.
        shards: parts that the rows of a batch are split into (devices, times accumulation).
        sharding: of the batch arrays, over rows; None = all on the default device.
        host_index, host_count: this host, if its rows are not to be read off `sharding`.

    Raises:
        InputError: `batch_size` is not divisible by `shards`.
    """

    def __init__(
        self,
        examples: TrainExamples,
        *,
        data: DataConfig,
        batch_size: int,
        seed: int,
        shards: int = 1,
        sharding: jax.sharding.Sharding | None = None,
        host_index: int | None = None,
        host_count: int | None = None,
    ):
        check_divisible("train.batch_size", batch_size, shards)
        self._examples, self._data, self._seed = examples, data, seed
        self.rows_per_batch = batch_size
        if data.packing:
            tokens = batch_size * float(examples.at(0).lengths.mean())
            rows = tokens / data.max_length / _FILL
            self.rows_per_batch = shards * max(1, round(rows / shards))
            if self.rows_per_batch > 1.25 * max(rows, 1):
                logger.warning(
                    "train.batch_size=%d asks for %.1f packed rows a step, but they are split into "
                    "%d parts (devices, times accumulation): a step takes %d rows, about %d "
                    "examples; choose fewer parts, a shorter max_length or a larger batch_size",
                    *(batch_size, rows, shards, self.rows_per_batch),
                    round(batch_size * self.rows_per_batch / rows),
                )
        self._place = _Place(self.rows_per_batch, sharding, host_index, host_count)
        # Two epochs, as the thread that loads may be one ahead of a caller that counts steps.
        self._plan = functools.lru_cache(maxsize=2)(self._plan_epoch)

    @property
    def fingerprint(self) -> int:
        """A checksum of what is trained on."""
        return self._examples.fingerprint

    def steps_in_epoch(self, epoch: int) -> int:
        """Batches of an epoch; with packing not the same in each."""
        return -(-self._plan(epoch).height // self.rows_per_batch)

    def batches(self, start: LoaderState, *, prefetch: int = 2) -> Iterator[LoadedBatch]:
        """The batches from `start` on, without end; `prefetch` of them wait on the device.

        A thread builds them. It ends when the iterator is closed or forgotten; what goes wrong in
        it is raised here.

        Raises:
            InputError: the epoch of `start` does not have that step.
        """
        steps = self.steps_in_epoch(start.epoch)
        if not 0 <= start.step < steps:
            raise InputError(
                f"epoch {start.epoch} has {steps} steps with these data and settings, so it cannot "
                f"go on at step {start.step}; continue with those the snapshot was made with"
            )
        return prefetched(self._endless(start), prefetch)

    def _endless(self, state: LoaderState) -> Iterator[LoadedBatch]:
        while True:
            batch = self._load(state)
            yield batch
            state = batch.next_state

    def _load(self, state: LoaderState) -> LoadedBatch:
        first = state.step * self.rows_per_batch
        rows = self._plan(state.epoch).between(first, first + self.rows_per_batch)
        examples = self._examples.at(state.epoch)
        lengths = examples.lengths_of(rows.members)
        row_length = _row_length(self._data, lengths)
        last = state.step + 1 == self.steps_in_epoch(state.epoch)
        return LoadedBatch(
            self._place.put(examples, rows, row_length, self._data.packing),
            real_tokens=int(lengths.sum()),
            padded_tokens=self.rows_per_batch * row_length,
            examples=len(rows.members),
            members=rows.members,
            example_rows=np.asarray(examples.rows[rows.members]),
            next_state=LoaderState(state.epoch + 1, 0)
            if last
            else LoaderState(state.epoch, state.step + 1),
        )

    def _plan_epoch(self, epoch: int) -> Rows:
        """All rows of an epoch in order: shuffled examples to rows, and these shuffled again."""
        data, examples = self._data, self._examples.at(epoch)
        count, lengths = len(examples), examples.lengths
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, epoch))))
        order = rng.permutation(count)
        if data.packing:
            rows = first_fit(
                lengths,
                order,
                row_length=data.max_length,
                max_per_row=examples.slots(data.max_length, packing=True),
                window=data.pack_window,
            )
            return rows.permuted(rng.permutation(rows.height))
        # Batches of similar lengths: sorted within a window of whole batches, then the full batches
        # are shuffled; the one that is not full stays last.
        height = self.rows_per_batch
        window = max(1, data.pack_window // height) * height
        block = np.arange(count) // window
        order = order[np.lexsort((lengths[order], block))]
        full = count // height
        shuffled = order[: full * height].reshape(full, height)[rng.permutation(full)]
        return one_per_row(np.concatenate([shuffled.ravel(), order[full * height :]]))


def eval_batches(
    examples: EpochExamples,
    *,
    data: DataConfig,
    batch_rows: int,
    shards: int = 1,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[tuple[dict[str, jax.Array], np.ndarray]]:
    """Every example exactly once, in batches of `batch_rows` rows, packed as `data` says.

    The second of each pair is int64 [B, P]: the index of the example in each slot, -1 for none.

    Raises:
        InputError: `batch_rows` is not divisible by `shards`.
    """
    check_divisible("train.eval_batch_size", batch_rows, shards)
    lengths = examples.lengths
    per_row = examples.slots(data.max_length, packing=data.packing)
    if data.packing:
        rows = first_fit(
            lengths,
            np.arange(len(examples)),
            row_length=data.max_length,
            max_per_row=per_row,
            window=data.pack_window,
        )
    else:
        rows = one_per_row(np.argsort(lengths, kind="stable"))
    place = _Place(batch_rows, sharding)
    for first in range(0, rows.height, batch_rows):
        part = rows.between(first, first + batch_rows)
        row_length = _row_length(data, examples.lengths_of(part.members))
        indices = np.full((batch_rows, per_row), -1, np.int64)
        counts = np.diff(part.starts)
        slot = np.arange(len(part.members)) - np.repeat(part.starts[:-1], counts)
        indices[np.repeat(np.arange(part.height), counts), slot] = part.members
        yield place.put(examples, part, row_length, data.packing), indices


def check_divisible(key: str, rows: int, shards: int) -> None:
    """Raises InputError if `rows` cannot be split into `shards` equal parts."""
    if rows % shards:
        down, up = rows // shards * shards, (rows // shards + 1) * shards
        choices = f"{down} or {up}" if down else f"{up}"
        raise InputError(
            f"{key}={rows} is not divisible by {shards}, the parts that a batch is split into "
            f"(devices of mesh.data and mesh.fsdp, times train.accumulation); choose {choices}"
        )


def _row_length(data: DataConfig, lengths: np.ndarray) -> int:
    if data.packing:
        return data.max_length
    return bucket(int(lengths.max()), data.buckets, data.max_length)


class _Place:
    """Builds this host's rows of a batch and puts them on its devices."""

    def __init__(
        self,
        height: int,
        sharding: jax.sharding.Sharding | None,
        host_index: int | None = None,
        host_count: int | None = None,
    ):
        self._height, self._sharding = height, sharding
        if sharding is not None and host_index is None:
            # Which rows are ours depends on the mesh, not only on our number: hosts may share rows.
            parts = sharding.addressable_devices_indices_map((height,)).values()
            bounds = [part[0].indices(height) for part in parts if part is not None]
            self._first = min(first for first, _, _ in bounds)
            self._last = max(last for _, last, _ in bounds)
            return
        index = jax.process_index() if host_index is None else host_index
        count = jax.process_count() if host_count is None else host_count
        check_divisible("rows of a batch", height, count)
        self._first, self._last = (height // count * (index + i) for i in (0, 1))

    def put(
        self, examples: EpochExamples, rows: Rows, row_length: int, packing: bool
    ) -> dict[str, jax.Array]:
        local = examples.fill(
            rows.between(self._first, self._last),
            row_length=row_length,
            height=self._last - self._first,
            packing=packing,
        )
        if self._sharding is None:
            return jax.device_put(local)
        return {
            name: jax.make_array_from_process_local_data(
                self._sharding, array, (self._height, *array.shape[1:])
            )
            for name, array in local.items()
        }
