"""What attention without scores in memory needs to know: the blocks that are seen, the weights that
are dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.attention.visibility import Visibility
from jaxllm.nn.layers import mix_bits, mix_key

HIDDEN = -1e30  # a hidden score; finite, so that a query without keys gives no NaN
_GOLDEN = 0x9E3779B9


class BlockRanges(NamedTuple):
    """What a query sees in a row: the keys of its id, within reach; and in which blocks they are.

    Attributes:
        q_ids_BT, k_ids_BT: int32.
        reach: int32 [2], places to the left and to the right, or None: the whole row.
        keys_BX2: int32, blocks of keys [first, end) that some query of the X-th block sees.
        queries_BY2: blocks of queries that see some key of the Y-th block.
    """

    q_ids_BT: jax.Array
    k_ids_BT: jax.Array
    reach: jax.Array | None
    keys_BX2: jax.Array
    queries_BY2: jax.Array

    def of_rows(self, rows: int) -> "BlockRanges":
        """The same for `rows` rows, where it is that of one."""

        def repeated(x: jax.Array) -> jax.Array:
            return x if x.ndim == 1 else jnp.broadcast_to(x, (rows, *x.shape[1:]))

        return jax.tree.map(repeated, self)


class Dropping(NamedTuple):
    """What chooses the weights to drop: words of a random key, and who the rows and heads are.

    Attributes:
        words: uint32 [2].
        rows_B, heads_N: int32: numbers of the rows and heads in the whole batch and model, so that
            a mask does not depend on how they are spread over devices.
    """

    words: jax.Array
    rows_B: jax.Array
    heads_N: jax.Array


def differentiable(
    forward: Callable[..., tuple[jax.Array, Any]], backward: Callable[..., tuple]
) -> Callable[..., jax.Array]:
    """softmax(q k^T / sqrt(H)) v with dropout on the weights, of a forward and a backward pass.

    It takes (static, q_BTNH, k_BTNH, v_BTNH, seen, dropping) and gives out_BTNH in the dtype of v;
    `static` is what is compiled in. `seen` None: every token sees every token; `dropping` None: no
    weight is dropped. `forward` also gives what `backward(static, saved, g_BTNH)` needs.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def attention(
        static: Any,
        q_BTNH: jax.Array,
        k_BTNH: jax.Array,
        v_BTNH: jax.Array,
        seen: BlockRanges | None = None,
        dropping: Dropping | None = None,
    ) -> jax.Array:
        return forward(static, q_BTNH, k_BTNH, v_BTNH, seen, dropping)[0]

    attention.defvjp(forward, backward)
    return attention


def differentiated_as(
    slow: Callable[..., jax.Array], fast: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """`fast(q, k, v, masks)`; but `slow`, the same function, where its gradient is asked for."""

    @jax.custom_vjp
    def attention(q: jax.Array, k: jax.Array, v: jax.Array, masks: Any) -> jax.Array:
        return fast(q, k, v, masks)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, masks: Any) -> tuple[jax.Array, Any]:
        return jax.vjp(lambda q, k, v: slow(q, k, v, masks), q, k, v)

    def backward(pull: Any, g: jax.Array) -> tuple:
        return (*pull(g), None)

    attention.defvjp(forward, backward)
    return attention


def block_ranges(
    q_ids_BT: jax.Array,
    k_ids_BT: jax.Array,
    causal: bool,
    window: tuple[int, int] | None,
    blocks: tuple[int, int],
) -> BlockRanges:
    """The blocks to compute, see `visibility.Visibility`.

    blocks: tokens of a block of queries and of one of keys; T is a multiple of both.
    """
    B, T = q_ids_BT.shape
    rows = Visibility(T, T, causal, window, q_ids_BT=q_ids_BT, k_ids_BS=k_ids_BT)
    seen: Any = rows.mask()
    queries, keys = blocks
    blocks_BXY = seen.reshape(B, T // queries, queries, T // keys, keys).any((2, 4))
    reach = None
    if causal or window is not None:
        left, right = window or (T, T)
        reach = jnp.asarray((left, 0 if causal else right), jnp.int32)
    return BlockRanges(
        q_ids_BT, k_ids_BT, reach, _range_of(blocks_BXY), _range_of(blocks_BXY.swapaxes(1, 2))
    )


def _range_of(blocks_BXY: jax.Array) -> jax.Array:
    """int32 [B, X, 2]: [first, end) of the true ones; [0, 0) where there are none."""
    Y = blocks_BXY.shape[-1]
    first = jnp.argmax(blocks_BXY, axis=-1)
    end = Y - jnp.argmax(blocks_BXY[..., ::-1], axis=-1)
    end = jnp.where(blocks_BXY.any(-1), end, 0)
    return jnp.stack([first, end], axis=-1).astype(jnp.int32)


def kept_weights(
    first: jax.Array, last: jax.Array, tokens: jax.Array, keys: jax.Array, rate: float
) -> jax.Array:
    """bool [*tokens, keys]: a full hash of each query, then one cheap round with the key's place.

    first, last: words of the random key. tokens: uint32, the linear index (row, head, token) of
    each query.
    """
    k0, k1 = mix_key(first, last)
    x = mix_bits(tokens ^ k0, k1)[..., None]
    keys = keys.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    x = x + jax.lax.expand_dims(keys, range(x.ndim - 1))
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
