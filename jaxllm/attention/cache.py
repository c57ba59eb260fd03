"""What past tokens leave for the attention of later ones: keys and values in static buffers."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.attention.scores import cached_attention
from jaxllm.attention.visibility import HIDDEN_ID, Visibility
from jaxllm.nn.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys and values of all layers for up to S tokens a row; a pytree.

    All rows are filled alike: prompts of different lengths are padded on the left. A place that is
    not filled, and one of padding, is seen by no token.

    Attributes:
        keys, values: a buffer [B, K, S, H] a layer, so that each is updated where it lies.
        ids_BS: int32: 1 for a token, else HIDDEN_ID.
        length: int32 []: places that are filled.
        layers: the parameters of each block, cut out of the stacked ones once and not for each
            token.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    ids_BS: jax.Array
    length: jax.Array
    layers: tuple[Any, ...]

    @classmethod
    def empty(
        cls, rows: int, places: int, heads: int, head_size: int, dtype: Any, layers: tuple[Any, ...]
    ) -> "Cache":
        """Of `rows` rows of `places` tokens, with K = `heads` heads of keys and values."""

        def buffer() -> jax.Array:
            return constrain(jnp.zeros((rows, heads, places, head_size), dtype), "BNTH")

        return cls(
            tuple(buffer() for _ in layers),
            tuple(buffer() for _ in layers),
            jnp.full((rows, places), HIDDEN_ID, jnp.int32),
            jnp.zeros((), jnp.int32),
            layers,
        )

    def rows(self, index_R: jax.Array) -> "Cache":
        """The rows of these numbers, such as the hypotheses that a beam goes on with."""
        return replace(
            self,
            keys=tuple(x[index_R] for x in self.keys),
            values=tuple(x[index_R] for x in self.values),
            ids_BS=self.ids_BS[index_R],
        )

    def seen(self, ids_BT: jax.Array) -> jax.Array:
        """ids_BS with those of T new tokens."""
        return jax.lax.dynamic_update_slice(self.ids_BS, ids_BT, (0, self.length))

    def add(self, layer: int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(keys, values) [B, K, S, H] of a layer with those of T new tokens."""
        start = (0, 0, self.length, 0)
        return (
            jax.lax.dynamic_update_slice(self.keys[layer], jnp.moveaxis(k_BTKH, 2, 1), start),
            jax.lax.dynamic_update_slice(self.values[layer], jnp.moveaxis(v_BTKH, 2, 1), start),
        )


class CachedAttend:
    """The attention of one layer's new tokens to those in a cache and to themselves.

    Called as `Attend`; what it was called with is then in `filled`, (keys, values) [B, K, S, H].
    """

    def __init__(self, cache: Cache, layer: int, visibility: Visibility):
        self.cache, self.layer, self.visibility = cache, layer, visibility
        self.filled: tuple[jax.Array, jax.Array] | None = None

    def __call__(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, **unused: Any
    ) -> tuple[jax.Array, None]:
        self.filled = self.cache.add(self.layer, k_BTKH, v_BTKH)
        mask = self.visibility.mask()
        assert mask is not None  # causal
        return cached_attention(q_BTNH, *self.filled, mask=mask), None
