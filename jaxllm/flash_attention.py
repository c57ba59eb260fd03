"""Flash attention for NVIDIA GPUs, a Pallas kernel lowered by Triton: dropout, segments, windows.

Softmax block by block (Dao, 2023, FlashAttention-2): scores and dropout masks are computed where
they are used, forward and backward, and are never in memory. Blocks of keys that no query of a
block sees are skipped, so packed rows cost what their segments cost.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxllm.layers import mix_bits, mix_key

# Tokens of a program, and of the other side at once; a row is a multiple of it. The fastest of
# eight plans for each kernel on an H200, with and without dropout, rows of 128 and of 512.
BLOCK, WARPS, STAGES = 64, 4, 3
HIDDEN = -1e30  # a hidden score; finite, so that a query without keys gives no NaN
_LOG2E = math.log2(math.e)
_GOLDEN = 0x9E3779B9


class Visible(NamedTuple):
    """What a query sees: the keys of its id, at most `radius` places away.

    Attributes:
        q_ids_BT, k_ids_BT: int32.
        radius: int32 [1].
        keys_BX2: int32, blocks [first, end) of BLOCK keys that some query of the X-th block sees.
        queries_BX2: the same for the X-th block of keys.
    """

    q_ids_BT: jax.Array
    k_ids_BT: jax.Array
    radius: jax.Array
    keys_BX2: jax.Array
    queries_BX2: jax.Array


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


@dataclass(frozen=True)
class Static:
    """Heads of the whole model, and the dropout rate: what is compiled in."""

    heads: int
    rate: float = 0.0


def visible(q_ids_BT: jax.Array, k_ids_BT: jax.Array, radius: jax.Array | int) -> Visible:
    """The blocks to compute, from ids and the window's radius (T or more: no window)."""
    B, T = q_ids_BT.shape
    place = jnp.arange(T)
    near = jnp.abs(place[:, None] - place[None, :]) <= radius
    seen = (q_ids_BT[:, :, None] == k_ids_BT[:, None, :]) & near[None]
    blocks_BXY = seen.reshape(B, T // BLOCK, BLOCK, T // BLOCK, BLOCK).any((2, 4))
    return Visible(
        q_ids_BT,
        k_ids_BT,
        jnp.asarray(radius, jnp.int32).reshape(1),
        _range_of(blocks_BXY),
        _range_of(blocks_BXY.swapaxes(1, 2)),
    )


def _range_of(blocks_BXY: jax.Array) -> jax.Array:
    """int32 [B, X, 2]: [first, end) of the true ones; [0, 0) where there are none."""
    Y = blocks_BXY.shape[-1]
    first = jnp.argmax(blocks_BXY, axis=-1)
    end = Y - jnp.argmax(blocks_BXY[..., ::-1], axis=-1)
    end = jnp.where(blocks_BXY.any(-1), end, 0)
    return jnp.stack([first, end], axis=-1).astype(jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def flash_attention(
    static: Static,
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    seen: Visible | None = None,
    dropping: Dropping | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with dropout on the weights: out_BTNH, in the dtype of v.

    T is a multiple of BLOCK, H a power of two from 16 to 128. `seen` None: every token sees every
    token.
    """
    return _forward(static, q_BTNH, k_BTNH, v_BTNH, seen, dropping)[0]


def _forward(
    static: Static,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: Visible | None,
    dropping: Dropping | None,
) -> tuple[jax.Array, tuple]:
    call = _Call(static, q, seen, dropping)
    B, T, N, _ = q.shape
    out, lse_BNT = call(
        _forward_kernel,
        {"q": q, "k": k, "v": v},
        owned=("q",),
        outputs={"out": q, "lse": jax.ShapeDtypeStruct((B, N, T), jnp.float32)},
    )
    return out, (q, k, v, out, lse_BNT, seen, dropping)


def _backward(static: Static, saved: tuple, g_BTNH: jax.Array) -> tuple:
    q, k, v, out, lse_BNT, seen, dropping = saved
    delta_BNT = jnp.einsum("BTNH,BTNH->BNT", out.astype(jnp.float32), g_BTNH.astype(jnp.float32))
    call = _Call(static, q, seen, dropping)
    arrays = {"q": q, "k": k, "v": v, "g": g_BTNH, "lse": lse_BNT, "delta": delta_BNT}
    dk, dv = call(_keys_kernel, arrays, owned=("k", "v"), outputs={"dk": k, "dv": v})
    owned = ("q", "g", "lse", "delta")
    (dq,) = call(_queries_kernel, arrays, owned=owned, outputs={"dq": q})
    return dq, dk, dv, None, None


flash_attention.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Call:
    """Calls of kernels on a grid of (own tokens, row, head)."""

    static: Static
    like: jax.Array  # [B, T, N, H]
    seen: Visible | None
    dropping: Dropping | None

    def __call__(
        self,
        kernel: Callable[["_Tile"], None],
        arrays: dict[str, jax.Array],
        *,
        owned: tuple[str, ...],
        outputs: dict[str, Any],
    ) -> list[jax.Array]:
        """The outputs; of them and of the arrays in `owned` a program gets its own tokens only."""
        B, T, N, _ = self.like.shape
        given, specs = dict(arrays), {}
        for name, x in arrays.items():
            specs[name] = _spec(x, BLOCK if name in owned else T)
        if self.seen is not None:
            given |= self.seen._asdict()
            specs |= {name: _of_row(x) for name, x in self.seen._asdict().items()}
            specs["radius"] = pl.BlockSpec((1,), lambda i, b, n: (0,))
        if self.dropping is not None:
            given |= self.dropping._asdict()
            specs["words"] = pl.BlockSpec((2,), lambda i, b, n: (0,))
            specs["rows_B"] = pl.BlockSpec((1,), lambda i, b, n: (b,))
            specs["heads_N"] = pl.BlockSpec((1,), lambda i, b, n: (n,))

        def run(*refs: Any) -> None:
            named = dict(zip([*given, *outputs], refs, strict=True))
            kernel(_Tile(self.static, named, T))

        return pl.pallas_call(
            run,
            grid=(T // BLOCK, B, N),
            in_specs=[specs[name] for name in given],
            out_specs=[_spec(x, BLOCK) for x in outputs.values()],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs.values()],
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=INTERPRET,
            name=kernel.__name__.strip("_"),
        )(*given.values())


INTERPRET = False


def _spec(x: Any, tokens: int) -> pl.BlockSpec:
    """`tokens` of a row and a head, those of the program where they are not all."""
    if x.ndim == 3:  # [B, N, T]
        whole = tokens == x.shape[2]
        return pl.BlockSpec((None, None, tokens), lambda i, b, n: (b, n, 0 if whole else i))
    whole = tokens == x.shape[1]
    shape = (None, tokens, None, x.shape[3])
    return pl.BlockSpec(shape, lambda i, b, n: (b, 0 if whole else i, n, 0))


def _of_row(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, *x.shape[1:]), lambda i, b, n: (b, *(0,) * (x.ndim - 1)))


class _Block(NamedTuple):
    """BLOCK tokens of the row."""

    number: Any

    @property
    def tokens(self) -> Any:
        return pl.ds(self.number * BLOCK, BLOCK)

    @property
    def places(self) -> jax.Array:
        return self.number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)


class _Tile:
    """One program: its refs by name, and what is between some queries and some keys."""

    def __init__(self, static: Static, refs: dict[str, Any], length: int):
        self.static, self.refs, self.length = static, refs, length
        self.width = refs["k"].shape[-1]
        self.own = _Block(pl.program_id(0))
        self.kept = 1.0 / (1.0 - static.rate)  # the scale of weights that are not dropped

    def __getattr__(self, name: str) -> Any:
        return self.refs[name]

    def zeros(self) -> jax.Array:
        return jnp.zeros((BLOCK, self.width), jnp.float32)

    def loop(self, ranges: str, body: Callable[[_Block, Any], Any], carry: Any) -> Any:
        """`body(block, carry)` over the other side's blocks, those in `ranges` where given."""
        first, end = 0, self.length // BLOCK
        if ranges in self.refs:
            first, end = (self.refs[ranges][self.own.number, i] for i in (0, 1))
        return jax.lax.fori_loop(first, end, lambda i, c: body(_Block(i), c), carry)

    def scores(self, q: jax.Array, k: jax.Array, queries: _Block, keys: _Block) -> jax.Array:
        """[queries, keys], times log2(e), hidden ones at HIDDEN."""
        scores = triton.dot(q, k.T) * (self.width**-0.5 * _LOG2E)
        if "q_ids_BT" not in self.refs:
            return scores
        same = self.q_ids_BT[queries.tokens][:, None] == self.k_ids_BT[keys.tokens][None, :]
        near = jnp.abs(queries.places[:, None] - keys.places[None, :]) <= self.radius[0]
        return jnp.where(same & near, scores, HIDDEN)

    def mask(self, queries: _Block, keys: _Block) -> jax.Array | float:
        """[queries, keys]: 1 for the weights that are kept and 0 for those that are dropped."""
        if "words" not in self.refs:
            return 1.0
        row = self.rows_B[0] * self.static.heads + self.heads_N[0]
        tokens = (row * self.length + queries.places).astype(jnp.uint32)
        words = self.words[0], self.words[1]
        return kept_weights(*words, tokens, keys.places, self.static).astype(jnp.float32)

    def between(self, *arrays: jax.Array, queries: _Block, keys: _Block) -> tuple:
        """(weights, gradient of the scores) [queries, keys]; their scales are left to the end."""
        q, k, v, g = arrays
        tokens = slice(None) if queries is self.own else queries.tokens
        lse, delta = self.lse[tokens], self.delta[tokens]
        weights = jnp.exp2(self.scores(q, k, queries, keys) - lse[:, None])
        mask = self.mask(queries, keys)
        dweights = triton.dot(g, v.T) * (mask * self.kept)
        return weights * mask, weights * (dweights - delta[:, None])


def kept_weights(
    first: jax.Array, last: jax.Array, tokens: jax.Array, keys: jax.Array, static: Static
) -> jax.Array:
    """bool [queries, keys]: a full hash of each query, then one cheap round with the key's place.

    first, last: words of the random key. tokens: uint32, the linear index (row, head, token) of
    each query.
    """
    k0, k1 = mix_key(first, last)
    x = mix_bits(tokens ^ k0, k1)[:, None] + (keys.astype(jnp.uint32) * jnp.uint32(_GOLDEN))[None]
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x >= jnp.uint32(min(round(static.rate * 2**32), 2**32 - 1))


def _forward_kernel(tile: _Tile) -> None:
    q = tile.q[...]

    def body(keys: _Block, carry: tuple) -> tuple:
        acc, most, total = carry
        k, v = tile.k[keys.tokens, :], tile.v[keys.tokens, :]
        scores = tile.scores(q, k, tile.own, keys)
        above = jnp.maximum(most, scores.max(axis=1))
        shrink = jnp.exp2(most - above)
        weights = jnp.exp2(scores - above[:, None])
        total = total * shrink + weights.sum(axis=1)
        weights = weights * tile.mask(tile.own, keys)
        return acc * shrink[:, None] + triton.dot(weights.astype(v.dtype), v), above, total

    most = jnp.full((BLOCK,), HIDDEN, jnp.float32)
    acc, most, total = tile.loop("keys_BX2", body, (tile.zeros(), most, jnp.zeros_like(most)))
    total = jnp.maximum(total, 1e-30)
    tile.out[...] = (acc * (tile.kept / total)[:, None]).astype(tile.out.dtype)
    tile.lse[...] = most + jnp.log2(total)


def _keys_kernel(tile: _Tile) -> None:
    k, v = tile.k[...], tile.v[...]

    def body(queries: _Block, carry: tuple) -> tuple:
        dk, dv = carry
        q, g = tile.q[queries.tokens, :], tile.g[queries.tokens, :]
        weights, dscores = tile.between(q, k, v, g, queries=queries, keys=tile.own)
        dv = dv + triton.dot(weights.astype(g.dtype).T, g)
        return dk + triton.dot(dscores.astype(q.dtype).T, q), dv

    dk, dv = tile.loop("queries_BX2", body, (tile.zeros(), tile.zeros()))
    tile.dk[...] = (dk * tile.width**-0.5).astype(tile.dk.dtype)
    tile.dv[...] = (dv * tile.kept).astype(tile.dv.dtype)


def _queries_kernel(tile: _Tile) -> None:
    q, g = tile.q[...], tile.g[...]

    def body(keys: _Block, dq: jax.Array) -> jax.Array:
        k, v = tile.k[keys.tokens, :], tile.v[keys.tokens, :]
        _, dscores = tile.between(q, k, v, g, queries=tile.own, keys=keys)
        return dq + triton.dot(dscores.astype(k.dtype), k)

    dq = tile.loop("keys_BX2", body, tile.zeros())
    tile.dq[...] = (dq * tile.width**-0.5).astype(tile.dq.dtype)
