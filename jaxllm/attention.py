"""Masks, positions and dot-product attention.

Shapes: q_BTNH, k_BSNH, v_BSNH; masks are boolean, true where a query may look, [B, 1, T, S] or [B,
1, 1, S].
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.layers import Key, dropout

# Added to masked scores. Finite, so that a query with every key masked gives a uniform row, not
# NaN.
MASKED = -1e30


def attention_mask(
    padding_BS: jax.Array | None = None, segments_BT: jax.Array | None = None
) -> jax.Array | None:
    """The mask of one self-attention call, or None where every token sees every token.

    `padding_BS` (1 = real) hides padded keys from every query, as in BERT. `segments_BT` makes
    attention
    block-diagonal: a token sees the tokens of its own segment; segment 0, the padding, sees only
    itself.
    """
    mask = None
    if segments_BT is not None:
        mask = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    if padding_BS is not None:
        keys = (padding_BS != 0)[:, None, None, :]
        mask = keys if mask is None else mask & keys
    return mask


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """int32 [B, T]: 0, 1, 2, … from the first token of each run of one segment id."""
    T = segments_BT.shape[1]
    index_BT = jax.lax.broadcasted_iota(jnp.int32, segments_BT.shape, 1)
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :T]
    starts_BT = jnp.where(segments_BT != before_BT, index_BT, 0)
    return index_BT - jax.lax.cummax(starts_BT, axis=1)


def window_mask(length: int, radius: int) -> jax.Array:
    """[1, 1, T, S]: a token sees the tokens at most `radius` places away, on either side.

    Distance is counted along the row; the segments of a packed row are contiguous, so within one it
    is the distance in that segment.
    """
    place = jnp.arange(length)
    return (jnp.abs(place[:, None] - place[None, :]) <= radius)[None, None]


def rotary_table(positions_BT: jax.Array, head_size: int, theta: float) -> jax.Array:
    """Cosines and sines [B, 2, T, H/2] float32 of p * theta^(-2i/H) (RoPE: Su et al., 2021)."""
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    angle = positions_BT[..., None].astype(jnp.float32) * frequency.astype(np.float32)[None, None]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def rotate(x_BTNH: jax.Array, table: jax.Array) -> jax.Array:
    """Each pair (x[i], x[i + H/2]) turned by its token's angle in the `table` of `rotary_table`.

    The layout of transformers, which pairs the halves of a head; the paper pairs neighbours, a
    permutation of the projections' columns. q . k then depends on the distance of the two tokens
    and not on where they stand. Computed in float32, returned in the dtype of x.
    """
    cos, sin = table[:, 0, :, None], table[:, 1, :, None]
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)


def dot_product_attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    *,
    mask: jax.Array | None,
    dropout_rate: float = 0.0,
    key: Key = None,
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(H)) v (Vaswani et al., 2017), softmax in float32, dropout on the weights
    as in BERT.

    Returns (out_BTNH, weights_BNTS); the weights cost nothing where the caller drops them under
    jit.
    """
    scale = jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * scale, k_BSNH).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSNH.dtype)
    weights = dropout(weights, dropout_rate, key)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v_BSNH), weights
