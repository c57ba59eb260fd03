"""Which examples an epoch has, where that is not each of them once."""

import functools
from dataclasses import dataclass

import numpy as np

from jaxllm.data.corpus import Examples
from jaxllm.data.packing import Rows


@dataclass(frozen=True)
class Draws:
    """Examples by number, perhaps one of them several times; see `corpus.Examples`.

    index: int64[n], the examples that are drawn.
    """

    examples: Examples
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> np.ndarray:
        return self.examples.lengths[self.index]

    @property
    def text_lengths(self) -> np.ndarray:
        return self.examples.text_lengths[self.index]

    @property
    def rows(self) -> np.ndarray:
        return self.examples.rows[self.index]

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        return self.examples.lengths_of(self.index[members])

    def slots(self, row_length: int, *, packing: bool) -> int:
        return self.examples.slots(row_length, packing=packing)

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        drawn = Rows(self.index[rows.members], rows.starts)
        return self.examples.fill(drawn, row_length=row_length, height=height, packing=packing)


class Balanced:
    """An epoch has as many examples as there are, and each class that occurs equally often, give
    or take one. Of a class all examples are drawn equally often, give or take one, too: those of a
    rare class again and again, of a frequent one others in each epoch.

    The examples of an epoch depend on `seed`, its number and the labels alone.

    Args:
        examples: with labels int32[n].
    """

    def __init__(self, examples: Examples, seed: int):
        assert examples.labels is not None
        self._examples, self._seed = examples, seed
        labels = np.asarray(examples.labels)
        self._classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    @property
    def fingerprint(self) -> int:
        """That of all examples."""
        return self._examples.fingerprint

    def at(self, epoch: int) -> Draws:
        """The examples of an epoch."""
        return self._drawn(epoch)

    def _draw(self, epoch: int) -> Draws:
        # The third number keeps these draws apart from those of the loader's order.
        seeds = np.random.SeedSequence((self._seed, epoch, 1))
        rng = np.random.Generator(np.random.Philox(seeds))
        each, more = divmod(len(self._examples), len(self._classes))
        counts = each + (rng.permutation(len(self._classes)) < more)
        index = []
        for members, count in zip(self._classes, counts, strict=True):
            whole, rest = divmod(int(count), len(members))
            index += [np.repeat(members, whole), rng.permutation(members)[:rest]]
        return Draws(self._examples, np.concatenate(index))
