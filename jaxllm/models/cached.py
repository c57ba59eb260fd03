"""Stacks of blocks on the tokens that follow those in a cache."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.attention.cache import Cache, CachedAttend
from jaxllm.attention.visibility import HIDDEN_ID, Visibility
from jaxllm.errors import InputError

# f(one block's module, x_BTD, its attention) -> x_BTD
Block = Callable[[Any, jax.Array, CachedAttend], jax.Array]


def empty_cache(
    blocks: nnx.Module, rows: int, places: int, heads: int, head_size: int, dtype: Any
) -> Cache:
    """A cache of stacked `blocks` for `rows` texts of at most `places` tokens."""
    _, stacked = nnx.split(blocks)
    count = len(jax.tree.leaves(stacked)[0])
    layers = tuple(jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(count))
    return Cache.empty(rows, places, heads, head_size, dtype, layers)


def check_call(**options: Any) -> None:
    """Raises InputError for what a call with a cache cannot do."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise InputError(f"{given[0]}: expected none beside a cache, of which all rows are texts")


def cached_blocks(
    blocks: nnx.Module,
    x_BTD: jax.Array,
    cache: Cache,
    mask_BT: jax.Array | None,
    windows: Sequence[int | None],
    block: Block,
) -> tuple[jax.Array, Cache]:
    """(the last block's output for T new tokens, the cache with them).

    Layer by layer: a buffer is updated where it lies only if it is one layer's. `mask_BT`: 0 for
    padding among the new tokens. `windows`: of each layer, the places that a token sees, its own
    included; None = all.
    """
    B, T, _ = x_BTD.shape
    ids_BT = jnp.ones((B, T), jnp.int32)
    if mask_BT is not None:
        ids_BT = jnp.where(mask_BT != 0, ids_BT, HIDDEN_ID)
    ids_BS = cache.seen(ids_BT)
    places_BT = cache.length + jnp.arange(T, dtype=jnp.int32)[None]
    graphdef, _ = nnx.split(blocks)
    keys, values = [], []
    for i, (params, window) in enumerate(zip(cache.layers, windows, strict=True)):
        visibility = Visibility(
            T,
            ids_BS.shape[1],
            causal=True,
            window=None if window is None else (window - 1, 0),
            k_ids_BS=ids_BS,
            q_places_BT=places_BT,
        )
        attend = CachedAttend(cache, i, visibility)
        x_BTD = block(nnx.merge(graphdef, params), x_BTD, attend)
        assert attend.filled is not None
        keys.append(attend.filled[0])
        values.append(attend.filled[1])
    length = cache.length + T
    filled = replace(cache, keys=tuple(keys), values=tuple(values), ids_BS=ids_BS, length=length)
    return x_BTD, filled
