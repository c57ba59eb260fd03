"""Rotary positions (RoPE: Su et al., 2021), and the ways of stretching them to longer texts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


def rotary_table(positions_BT: jax.Array, head_size: int, theta: float) -> jax.Array:
    """Cosines and sines [B, 2, T, H/2] float32 of p * theta^(-2i/H)."""
    return Rope(head_size, theta).table(positions_BT)


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one kind; names and numbers are those of transformers' rope_parameters.

    Attributes:
        head_size: H, even.
        theta: base of the wave lengths.
        kind: default; linear: positions divided by `factor`; dynamic: a larger base for texts
            longer than `longest`; yarn (Peng et al., 2023); llama3: long waves alone are divided;
            longrope (Ding et al., 2024): a divisor a wave, others for texts longer than `longest`.
        factor: by how much longer texts may be.
        longest: tokens of a text in pretraining.
        scale: what cosines and sines are multiplied with.
        low, high: llama3: how often a wave fits into `longest` tokens: those below `low` are long,
            those above `high` are short. yarn: the same, `low` being beta_slow.
        truncate: yarn: the bounds between the waves are whole numbers.
        short_factors, long_factors: longrope, H/2 divisors.
    """

    head_size: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    longest: int = 0
    scale: float = 1.0
    low: float = 1.0
    high: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def table(self, positions_BT: jax.Array) -> jax.Array:
        """Cosines and sines [B, 2, T, H/2] float32 of the positions times the frequencies.

        Those of dynamic and longrope depend on the longest text of the batch, as in transformers.
        """
        angle = positions_BT[..., None].astype(jnp.float32) * self._frequencies(positions_BT)
        table = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return table if self.scale == 1.0 else table * self.scale

    def _frequencies(self, positions_BT: jax.Array) -> jax.Array | np.ndarray:
        """float32 [1, 1, H/2]."""
        if self.kind == "dynamic":
            tokens = jnp.maximum(positions_BT.max() + 1, self.longest).astype(jnp.float32)
            growth = self.factor * tokens / self.longest - (self.factor - 1)
            theta = self.theta * growth ** (self.head_size / (self.head_size - 2))
            exponents = self._exponents().astype(np.float32)[None, None]
            return 1.0 / theta[None, None, None] ** exponents
        frequencies = self.theta ** -self._exponents()
        if self.kind == "longrope":
            short, long = (
                (frequencies / np.asarray(factors)).astype(np.float32)[None, None]
                for factors in (self.short_factors, self.long_factors)
            )
            return jnp.where(positions_BT.max() + 1 > self.longest, long, short)
        return STRETCHED[self.kind](self, frequencies).astype(np.float32)[None, None]

    def _exponents(self) -> np.ndarray:
        return np.arange(0, self.head_size, 2, dtype=np.float64) / self.head_size


def _llama3(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
    turns = rope.longest * frequencies / (2 * math.pi)  # of a wave in the longest text
    kept = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    return frequencies * (kept + (1 - kept) / rope.factor)


def _yarn(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
    def index(turns: float) -> float:
        """Of the wave that fits so often into the longest text."""
        waves = math.log(rope.longest / (turns * 2 * math.pi)) / math.log(rope.theta)
        return rope.head_size / 2 * waves

    first, last = index(rope.high), index(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.head_size - 1)
    width = last - first or 0.001
    divided = np.clip((np.arange(rope.head_size // 2) - first) / width, 0, 1)
    return frequencies * (1 - divided + divided / rope.factor)


STRETCHED: dict[str, Callable[[Rope, np.ndarray], np.ndarray]] = {
    "default": lambda rope, frequencies: frequencies,
    "linear": lambda rope, frequencies: frequencies / rope.factor,
    "llama3": _llama3,
    "yarn": _yarn,
}
KINDS = (*STRETCHED, "dynamic", "longrope")


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
