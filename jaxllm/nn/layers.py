"""Dense, Embed, LayerNorm, RMSNorm, dropout and activations: the dtype policy lives here.

Parameters are float32. A layer computes in its `dtype` (bfloat16 on accelerators); LayerNorm takes
its statistics in float32 whatever the dtype. Letters in names are those of the design: B batch, T
tokens, D model width, N heads, H head size, F MLP width, V vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

Key = jax.Array | None  # a JAX random key; None means evaluation: dropout is off


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float, cutoff: float | None = None
) -> nnx.Param:
    """A normal draw; with `cutoff`, none further than `cutoff` times `stddev` from zero."""
    if cutoff is None:
        return nnx.Param(stddev * jax.random.normal(rngs.params(), shape, jnp.float32))
    draw = jax.random.truncated_normal(rngs.params(), -cutoff, cutoff, shape, jnp.float32)
    return nnx.Param(stddev * draw)


class Dense(nnx.Module):
    """y = x @ kernel + bias over the last axes: x [..., *in], kernel [*in, *out], bias [*out], y
    [..., *out]. `use_bias=False`: no bias. `cutoff`: see `normal`.

    The product is taken on the kernel seen as a matrix: with head axes left in an einsum, XLA
    transposes every
    [D, N, H] gradient once more in memory.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        *,
        stddev: float,
        cutoff: float | None = None,
        use_bias: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.num_in = len(in_shape)
        self.dtype = dtype
        self.kernel = normal(rngs, in_shape + out_shape, stddev, cutoff)
        self.bias = nnx.Param(jnp.zeros(out_shape, jnp.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        lead = x.shape[: x.ndim - self.num_in]
        x = x.astype(self.dtype).reshape(*lead, math.prod(kernel.shape[: self.num_in]))
        y = x @ kernel.reshape(x.shape[-1], -1)
        if self.bias is not None:
            y = add_bias(y, self.bias[...].astype(self.dtype).reshape(-1))
        return y.reshape(*lead, *kernel.shape[self.num_in :])


class Embed(nnx.Module):
    """A table [V, D]: `__call__` looks rows up, `attend` multiplies by its transpose (tied
    decoder).
    """

    def __init__(
        self,
        size: int,
        width: int,
        *,
        stddev: float,
        cutoff: float | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.embedding = normal(rngs, (size, width), stddev, cutoff)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The rows of the table; of what is floating, and so embedded already, the numbers."""
        if is_embedded(tokens):
            return tokens.astype(self.dtype)
        # Gather first, cast after: a bfloat16 copy of the whole table would cost V x D.
        return jnp.take(self.embedding[...], tokens, axis=0).astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        table_VD = self.embedding[...].astype(self.dtype)
        if self.dtype != jnp.float32:
            # cuBLAS' fast kernels want rows that are a multiple of 16 bytes; BERT's 30,522 are not.
            table_VD = jnp.pad(table_VD, ((0, -len(table_VD) % 64), (0, 0)))
        logits = jnp.einsum("...D,VD->...V", x.astype(self.dtype), table_VD)
        return logits[..., : len(self.embedding[...])]


def is_embedded(tokens: jax.Array) -> bool:
    """Whether these are embeddings [..., D], not ids."""
    return jnp.issubdtype(tokens.dtype, jnp.floating)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, float32 statistics, two-pass variance (Ba et al., 2016)."""

    def __init__(self, width: int, *, eps: float, use_bias: bool = True, dtype: jnp.dtype):
        self.eps = eps
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        x = match_rank(self.scale[...], x) * x
        if self.bias is not None:
            x = add_bias(x, self.bias[...])
        return x.astype(self.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) times a scale, over the last axis, in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype):
        self.eps = eps
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (match_rank(self.scale[...], x) * x).astype(self.dtype)


def match_rank(a: jax.Array, x: jax.Array) -> jax.Array:
    """`a` with leading axes of size one up to the rank of `x`: broadcasts are explicit here."""
    return a.reshape((1,) * (x.ndim - a.ndim) + a.shape)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + match_rank(bias, x)


def dropout(x: jax.Array, rate: float, key: Key) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest by 1 / (1 - rate); `key=None` is
    the identity.
    """
    if key is None or rate == 0.0:
        return x
    keep = random_bits(key, x.shape) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 bits [*shape], a hash of (key, linear index).

    Counter-based, so a mask does not depend on how the array is sharded, and cheap enough to fuse
    into its consumer: 9 integer operations an element, threefry has 20 rounds. The mixing constants
    are lowbias32's (C. Wellons, hash-prospector); the key's second word enters between its two
    rounds, so that two keys never give shifted copies of one stream. Good for dropout, not for
    anything that needs a cryptographic or long-period generator.
    """
    k0, k1 = mix_key(*key_words(key))
    index = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + iota * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return mix_bits(index ^ k0, k1)


def key_words(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the last uint32 of a random key, typed or raw."""
    data = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
    return data.reshape(-1)[0], data.reshape(-1)[-1]


def mix_key(first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A key's words, mixed: neighbouring keys must give unrelated streams."""
    k0 = mix_bits(first ^ mix_bits(last ^ jnp.uint32(0x9E3779B9)))
    return k0, mix_bits(k0 + jnp.uint32(0x9E3779B9))


def mix_bits(x: jax.Array, between: jax.Array | int = 0) -> jax.Array:
    """lowbias32, with `between` added between its two rounds."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) + jnp.uint32(between)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def split_key(key: Key, num: int) -> list[Key]:
    """`num` independent keys, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) with the error function, as in BERT (`jax.nn.gelu` defaults to the tanh
    approximation).

    With erf, as PyTorch has it; `jax.nn.gelu(approximate=False)` takes erfc, whose two branches and
    exp cost twice the time on CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


# By the names that transformers' configs give them.
ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
