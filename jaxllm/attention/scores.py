"""Dot-product attention with its scores in memory, by XLA: what all others are measured by."""

import jax
import jax.numpy as jnp

from jaxllm.attention.visibility import MASKED
from jaxllm.nn.layers import Key, dropout


def dot_product_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    mask: jax.Array | None,
    bias: jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: Key = None,
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(H) + bias) v (Vaswani et al., 2017), softmax in float32, dropout on the
    weights as in BERT. Query head n looks at the keys of head n // (N / K) (Ainslie et al., 2023).

    `mask`: bool [B or 1, 1, T or 1, S], true where a query may look. `bias`: broadcasts to
    [B, N, T, S].

    Returns (out_BTNH, weights_BNTS); the weights cost nothing where the caller drops them under
    jit.
    """
    k_BSNH, v_BSNH = (repeat_heads(x, q_BTNH.shape[2]) for x in (k_BSKH, v_BSKH))
    scale = jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * scale, k_BSNH).astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSNH.dtype)
    weights = dropout(weights, dropout_rate, key)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v_BSNH), weights


def repeat_heads(x_BSKH: jax.Array, heads: int) -> jax.Array:
    """x_BSNH: each of K heads N / K times, one after the other."""
    K = x_BSKH.shape[2]
    return x_BSKH if heads == K else jnp.repeat(x_BSKH, heads // K, axis=2)


def cached_attention(
    q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, *, mask: jax.Array
) -> jax.Array:
    """As `dot_product_attention`, of queries to the keys of a cache: out_BTNH.

    Heads lie before tokens there, and those of a group share a product, so that nothing of the
    cache is copied: it is as large as the weights, and is read for each token.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    scale = jnp.asarray(H**-0.5, q_BTNH.dtype)
    q_BKMH = jnp.moveaxis(q_BTNH * scale, 2, 1).reshape(B, K, N // K * T, H)
    scores = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH).astype(jnp.float32)
    scores = jnp.where(mask, scores.reshape(B, N, T, -1), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKSH.dtype)
    out_BKMH = jnp.einsum("BKMS,BKSH->BKMH", weights.reshape(B, K, N // K * T, -1), v_BKSH)
    return jnp.moveaxis(out_BKMH.reshape(B, N, T, H), 1, 2)
