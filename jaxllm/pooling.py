"""One vector for each text, from the vectors of its tokens."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

PoolingMode = Literal["mean", "cls", "max"]


@dataclass(frozen=True)
class Pooling:
    """How the tokens of a text become its vector, as sentence-transformers does it.

    mode: the mean or the maximum over all tokens of the text, special ones included, or its first.
    normalize: whether the vector is scaled to length 1.
    """

    mode: PoolingMode = "mean"
    normalize: bool = True

    def __call__(
        self, x_BTD: jax.Array, segment_ids_BT: jax.Array, head_positions_BP: jax.Array
    ) -> jax.Array:
        """float32 [B, P, D]: the vector of each segment.

        `head_positions_BP`: the first token of segments 1 to P. A segment that is not there gives
        zeros; with "cls" a vector of no meaning.
        """
        x_BTD = x_BTD.astype(jnp.float32)
        if self.mode == "cls":
            e_BPD = jnp.take_along_axis(x_BTD, head_positions_BP[..., None], axis=1)
        else:
            pool = _mean if self.mode == "mean" else _max
            e_BPD = pool(x_BTD, segment_ids_BT, head_positions_BP.shape[1])
        return unit(e_BPD) if self.normalize else e_BPD


def unit(x: jax.Array) -> jax.Array:
    """Scaled to length 1 over the last axis. Zeros stay zeros, and have a gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _mean(x_BTD: jax.Array, segment_ids_BT: jax.Array, segments: int) -> jax.Array:
    numbers_P = jnp.arange(1, segments + 1)
    inside_BPT = segment_ids_BT[:, None, :] == numbers_P[None, :, None]
    # A product, which every device does for its own rows; a scatter might gather them all.
    sums_BPD = jnp.einsum(
        "BPT,BTD->BPD", inside_BPT.astype(jnp.float32), x_BTD, precision=jax.lax.Precision.HIGHEST
    )
    return sums_BPD / jnp.maximum(jnp.sum(inside_BPT, axis=-1, keepdims=True), 1)


def _max(x_BTD: jax.Array, segment_ids_BT: jax.Array, segments: int) -> jax.Array:
    @jax.checkpoint  # what the backward pass needs is [B, T, D] for each segment: not to be kept
    def one(number: jax.Array) -> jax.Array:
        inside_BT1 = (segment_ids_BT == number)[..., None]
        e_BD = jnp.max(jnp.where(inside_BT1, x_BTD, -jnp.inf), axis=1)
        return jnp.where(jnp.any(inside_BT1, axis=1), e_BD, 0.0)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(1, segments + 1)), 0, 1)
