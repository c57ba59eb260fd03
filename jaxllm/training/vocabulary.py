"""Training with those rows of the word embedding that the data can reach.

A fine-tuning set holds a part of the vocabulary. The gradient of every other row is zero at every
step, yet the optimizer, the clipping and the snapshot would go through them all. So the tokens of
the training text are numbered anew, from 0, the train state holds the table of these rows only, and
the whole table is put together again for evaluation and export.

The one difference to training the whole table: rows that are never reached stay what they were,
where weight decay would shrink them all alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.data.corpus import Examples
from jaxllm.models import Params
from jaxllm.nn.sharding import parameter_sharding

PATH = "embeddings/word/embedding"
MULTIPLE = 128  # rows are filled up to this, so that the table can be split over a mesh


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that a text reaches.

    ids: int32[W], rising; 0 is among them, as it stands in the empty places of a batch.
    size: V, rows of the whole table.
    """

    ids: np.ndarray
    size: int

    @classmethod
    def of(cls, tokens: np.ndarray, size: int) -> "Vocabulary":
        """The ids in `tokens`, filled up with others to a multiple of 128."""
        reached = np.zeros(size, bool)
        for start in range(0, len(tokens), 1 << 24):  # they may be a file larger than memory
            reached[tokens[start : start + (1 << 24)]] = True
        reached[0] = True
        missing = -int(reached.sum()) % MULTIPLE
        reached[np.flatnonzero(~reached)[:missing]] = True
        return cls(np.flatnonzero(reached).astype(np.int32), size)

    def renumber(self, examples: Examples) -> Examples:
        """The examples with token ids 0 to W - 1."""
        number = np.zeros(self.size, np.int32)
        number[self.ids] = np.arange(len(self.ids), dtype=np.int32)
        return replace(examples, tokens=number[examples.tokens])

    def take(self, params: Params, mesh: Mesh) -> tuple[Params, Callable[[Params], Params]]:
        """(the parameters with a table [W, D], what makes that table [V, D] again)."""
        whole = params["embeddings"]["word"]["embedding"]
        sharding = parameter_sharding(mesh, PATH, (len(self.ids), whole.shape[1]))
        rows = jax.jit(lambda table: table[self.ids], out_shardings=sharding)(whole)
        put = jax.jit(
            lambda whole, rows: whole.at[self.ids].set(
                rows, unique_indices=True, indices_are_sorted=True
            ),
            out_shardings=whole.sharding,
        )

        def complete(params: Params) -> Params:
            return _with_table(params, put(whole, params["embeddings"]["word"]["embedding"]))

        return _with_table(params, rows), complete


def _with_table(params: Params, table: jax.Array) -> Params:
    embeddings = params["embeddings"]
    word = {**embeddings["word"], "embedding": table}
    return {**params, "embeddings": {**embeddings, "word": word}}
