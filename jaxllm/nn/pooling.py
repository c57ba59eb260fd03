"""One vector for each text, from the vectors of its tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.nn.layers import gelu

LAYERS = "dense"  # where their parameters are among the model's, by their numbers
PoolingMode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # by the names of torch's modules
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": gelu,
    "Sigmoid": jax.nn.sigmoid,
    "SiLU": jax.nn.silu,
}


@dataclass(frozen=True)
class DenseLayer:
    """What a pooled vector goes through: activation(x @ kernel + bias).

    kernel: float32 [I, O]. bias: float32 [O], or None. activation: a key of ACTIVATIONS.
    """

    kernel: np.ndarray | jax.Array
    bias: np.ndarray | jax.Array | None
    activation: str

    @property
    def params(self) -> dict[str, np.ndarray | jax.Array]:
        """The arrays by name."""
        arrays = {"kernel": self.kernel, "bias": self.bias}
        return {name: array for name, array in arrays.items() if array is not None}

    def __call__(self, e_BPI: jax.Array) -> jax.Array:
        precision = jax.lax.Precision.HIGHEST
        e_BPO = jnp.einsum("BPI,IO->BPO", e_BPI, self.kernel, precision=precision)
        if self.bias is not None:
            e_BPO += self.bias[None, None]
        return ACTIVATIONS[self.activation](e_BPO)


@dataclass(frozen=True)
class Pooling:
    """How the tokens of a text become its vector, as sentence-transformers does it.

    mode: the mean or the maximum over all tokens of the text, special ones included; its first or
        last; a mean with a weight that rises from 1 by 1; or the sum over the root of the count.
    normalize: whether the vector is scaled to length 1.
    layers: what it goes through before that.
    width: numbers of the vector that are kept, the first; None = all.
    skip: tokens at the beginning of a text that are left out, those of a prompt.
    """

    mode: PoolingMode = "mean"
    normalize: bool = True
    layers: tuple[DenseLayer, ...] = ()
    width: int | None = None
    skip: int = 0

    def of(self, params: Any) -> tuple["Pooling", Any]:
        """(this with the layers in a model's parameters, the parameters of the encoder)"""
        if not self.layers:
            return self, params
        numbered = enumerate(self.layers)
        layers = (replace(layer, **params[LAYERS][str(i)]) for i, layer in numbered)
        encoder = {name: tree for name, tree in params.items() if name != LAYERS}
        return replace(self, layers=tuple(layers)), encoder

    def __call__(
        self, x_BTD: jax.Array, segment_ids_BT: jax.Array, head_positions_BP: jax.Array
    ) -> jax.Array:
        """float32 [B, P, D]: the vector of each segment, with D of the last layer, or `width`.

        `head_positions_BP`: the first token of segments 1 to P. A segment that is not there gives a
        vector of no meaning; zeros, of the mean and the maximum without layers.
        """
        e = self._pooled(x_BTD.astype(jnp.float32), segment_ids_BT, head_positions_BP)
        for layer in self.layers:
            e = layer(e)
        return (unit(e) if self.normalize else e)[..., : self.width]

    def _pooled(
        self, x_BTD: jax.Array, segment_ids_BT: jax.Array, head_positions_BP: jax.Array
    ) -> jax.Array:
        numbers_P = jnp.arange(1, head_positions_BP.shape[1] + 1)
        inside_BPT = segment_ids_BT[:, None, :] == numbers_P[None, :, None]
        if self.mode == "lasttoken":
            return _at(x_BTD, head_positions_BP + jnp.sum(inside_BPT, axis=-1) - 1)
        if self.mode == "cls":
            return _at(x_BTD, head_positions_BP + self.skip)
        # The place of a token in its segment, from 0.
        places_BPT = jnp.arange(x_BTD.shape[1])[None, None] - head_positions_BP[..., None]
        inside_BPT &= places_BPT >= self.skip
        if self.mode == "max":
            return _max(x_BTD, inside_BPT)
        weights_BPT = inside_BPT.astype(jnp.float32)
        if self.mode == "weightedmean":
            weights_BPT *= places_BPT + 1
        # A product, which every device does for its own rows; a scatter might gather them all.
        sums_BPD = jnp.einsum(
            "BPT,BTD->BPD", weights_BPT, x_BTD, precision=jax.lax.Precision.HIGHEST
        )
        total_BP1 = jnp.maximum(jnp.sum(weights_BPT, axis=-1, keepdims=True), 1)
        return sums_BPD / (
            jnp.sqrt(total_BP1) if self.mode == "mean_sqrt_len_tokens" else total_BP1
        )


def unit(x: jax.Array) -> jax.Array:
    """Scaled to length 1 over the last axis. Zeros stay zeros, and have a gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _at(x_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BTD, positions_BP[..., None], axis=1, mode="clip")


def _max(x_BTD: jax.Array, inside_BPT: jax.Array) -> jax.Array:
    @jax.checkpoint  # what the backward pass needs is [B, T, D] for each segment: not to be kept
    def one(inside_BT: jax.Array) -> jax.Array:
        e_BD = jnp.max(jnp.where(inside_BT[..., None], x_BTD, -jnp.inf), axis=1)
        return jnp.where(jnp.any(inside_BT, axis=1)[:, None], e_BD, 0.0)

    return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(inside_BPT, 1, 0)), 0, 1)
