"""Rotary positions (RoPE: Su et al., 2021)."""

import jax
import jax.numpy as jnp
import numpy as np


def rotary_table(positions_BT: jax.Array, head_size: int, theta: float) -> jax.Array:
    """Cosines and sines [B, 2, T, H/2] float32 of p * theta^(-2i/H)."""
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
