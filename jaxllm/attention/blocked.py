"""Attention in blocks that a CPU's caches hold, in plain JAX: dropout, segments, windows.

Softmax block by block (Dao, 2023, FlashAttention-2), forward and backward, a row at a time. With
the scores of all rows and heads in memory, half of an attention's time on a CPU goes by between
its two products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.attention.blocks import HIDDEN, BlockRanges, Dropping, differentiable, kept_weights

# Tokens of a block of queries and of one of keys, at most. The fastest of nine pairs for rows of
# 512, heads of 32; training on rows of 128 is as fast without, and so is all else on shorter ones
# (dev/LOG.md).
QUERIES, KEYS = 512, 128
_FEWEST = 32


def blocks_of(length: int) -> tuple[int, int] | None:
    """(queries, keys) of a block in rows of `length` tokens; None where blocks gain nothing."""
    keys = max(size for size in range(1, KEYS + 1) if length % size == 0)
    if length < KEYS or keys < _FEWEST:
        return None
    queries = (size for size in range(keys, QUERIES + 1, keys) if length % size == 0)
    return max(queries), keys


@dataclass(frozen=True)
class Static:
    """Heads of the whole model, the dropout rate, and `blocks_of` the rows: what is compiled in."""

    heads: int
    rate: float
    blocks: tuple[int, int]


def _forward(
    static: Static,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: BlockRanges | None,
    dropping: Dropping | None,
) -> tuple[jax.Array, tuple]:
    tiles = _Tiles(static, q.shape, seen, dropping)
    q_BXNtH, k_BYNHs, v_BYNsH = tiles.queries(tiles.scaled(q)), tiles.turned(k), tiles.keys(v)
    B, X, N, t, H = q_BXNtH.shape
    start = jnp.full((N, t), HIDDEN, jnp.float32), jnp.zeros((N, t)), jnp.zeros((N, t, H))

    def block(at: jax.Array, outputs: tuple) -> tuple:
        b, x = at // X, at % X
        q_NtH = q_BXNtH[b, x]

        def body(y: jax.Array, carry: tuple) -> tuple:
            most, total, out = carry
            scores = tiles.scores(q_NtH, k_BYNHs[b, y], b, x, y)
            above = jnp.maximum(most, scores.max(-1))
            shrink = jnp.exp(most - above)
            weights = jnp.exp(scores - above[..., None])
            total = total * shrink + weights.sum(-1)
            weights = tiles.dropped(weights, b, x, y).astype(v.dtype)
            out = out * shrink[..., None] + _dot("Nts,NsH->NtH", weights, v_BYNsH[b, y])
            return above, total, out

        most, total, out = tiles.loop(b, x, body, start)
        total = jnp.maximum(total, 1e-30)
        blocks = out / total[..., None], most + jnp.log(total)
        return tuple(_put(a, block, b, x) for a, block in zip(outputs, blocks, strict=True))

    empty = jnp.zeros((B, X, N, t, H)), jnp.zeros((B, X, N, t))
    out_BXNtH, lse_BXNt = jax.lax.fori_loop(0, B * X, block, empty)
    out = tiles.tokens(out_BXNtH).astype(v.dtype)
    return out, (q, k, v, out, lse_BXNt, seen, dropping)


def _backward(static: Static, saved: tuple, g: jax.Array) -> tuple:
    q, k, v, out, lse_BXNt, seen, dropping = saved
    tiles = _Tiles(static, q.shape, seen, dropping)
    q_BXNtH, g_BXNtH = tiles.queries(tiles.scaled(q)), tiles.queries(g)
    k_BYNsH, k_BYNHs, v_BYNHs = tiles.keys(k), tiles.turned(k), tiles.turned(v)
    delta_BXNt = tiles.queries(out.astype(jnp.float32) * g.astype(jnp.float32)).sum(-1)

    def row(b: jax.Array, grads: tuple) -> tuple:
        def block(x: jax.Array, carry: tuple) -> tuple:
            dq_XNtH, *others = carry
            q_NtH, g_NtH = q_BXNtH[b, x], g_BXNtH[b, x]
            lse, delta = lse_BXNt[b, x][..., None], delta_BXNt[b, x][..., None]

            def body(y: jax.Array, carry: tuple) -> tuple:
                dq, dk_YNHs, dv_YNHs = carry
                weights = jnp.exp(tiles.scores(q_NtH, k_BYNHs[b, y], b, x, y) - lse)
                dweights = tiles.dropped(_dot("NtH,NHs->Nts", g_NtH, v_BYNHs[b, y]), b, x, y)
                dscores = (weights * (dweights - delta)).astype(q.dtype)
                weights = tiles.dropped(weights, b, x, y).astype(g.dtype)
                dq = dq + _dot("Nts,NsH->NtH", dscores, k_BYNsH[b, y])
                dk_YNHs = dk_YNHs.at[y].add(_dot("Nts,NtH->NHs", dscores, q_NtH))
                dv_YNHs = dv_YNHs.at[y].add(_dot("Nts,NtH->NHs", weights, g_NtH))
                return dq, dk_YNHs, dv_YNHs

            dq, *others = tiles.loop(b, x, body, (jnp.zeros(q_NtH.shape), *others))
            return _put(dq_XNtH, dq, x), *others

        zeros = tuple(jnp.zeros(grad.shape[1:]) for grad in grads)
        rows = jax.lax.fori_loop(0, q_BXNtH.shape[1], block, zeros)
        return tuple(_put(grad, of_row, b) for grad, of_row in zip(grads, rows, strict=True))

    shapes = q_BXNtH.shape, k_BYNHs.shape, v_BYNHs.shape
    dq, dk, dv = jax.lax.fori_loop(0, len(q), row, tuple(jnp.zeros(shape) for shape in shapes))
    dq = tiles.tokens(dq) * q.shape[-1] ** -0.5
    dk, dv = (tiles.tokens(grad.swapaxes(-1, -2)) for grad in (dk, dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


# T is a multiple of both blocks.
blocked_attention = differentiable(_forward, _backward)


class _Tiles:
    """Blocks of queries and keys, heads first; what is between the x-th and the y-th of row b."""

    def __init__(
        self,
        static: Static,
        shape: tuple[int, ...],
        seen: BlockRanges | None,
        dropping: Dropping | None,
    ):
        self.rate, self.heads = static.rate, static.heads
        self.shape, self.seen, self.dropping = shape, seen, dropping
        self.t, self.s = static.blocks

    def scaled(self, q: jax.Array) -> jax.Array:
        return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)

    def queries(self, x_BTNH: jax.Array) -> jax.Array:
        """[B, X, N, t, H]"""
        return self._cut(x_BTNH, self.t).swapaxes(2, 3)

    def keys(self, x_BTNH: jax.Array) -> jax.Array:
        """[B, Y, N, s, H]"""
        return self._cut(x_BTNH, self.s).swapaxes(2, 3)

    def turned(self, x_BTNH: jax.Array) -> jax.Array:
        """[B, Y, N, H, s]: as the right side of a product this is faster on a CPU."""
        return self._cut(x_BTNH, self.s).transpose(0, 1, 3, 4, 2)

    def _cut(self, x_BTNH: jax.Array, size: int) -> jax.Array:
        B, T, N, H = x_BTNH.shape
        return x_BTNH.reshape(B, T // size, size, N, H)

    def tokens(self, x_BXNtH: jax.Array) -> jax.Array:
        """Back to [B, T, N, H]."""
        return x_BXNtH.swapaxes(2, 3).reshape(self.shape)

    def loop(self, b: jax.Array, x: jax.Array, body: Callable[..., Any], carry: Any) -> Any:
        """`body(y, carry)` over the blocks of keys that some query of the x-th block sees."""
        first, end = 0, self.shape[1] // self.s
        if self.seen is not None:
            first, end = self.seen.keys_BX2[b, x]
        return jax.lax.fori_loop(first, end, body, carry)

    def scores(
        self, q_NtH: jax.Array, k_NHs: jax.Array, b: jax.Array, x: jax.Array, y: jax.Array
    ) -> jax.Array:
        """[N, t, s] float32; hidden ones at HIDDEN."""
        scores = _dot("NtH,NHs->Nts", q_NtH, k_NHs)
        if self.seen is None:
            return scores
        ids_t = jax.lax.dynamic_slice(self.seen.q_ids_BT, (b, x * self.t), (1, self.t))
        ids_s = jax.lax.dynamic_slice(self.seen.k_ids_BT, (b, y * self.s), (1, self.s))
        seen = ids_t[:, :, None] == ids_s[:, None]
        if self.seen.reach is not None:
            places_t, places_s = self._places(x, y)
            ahead, (left, right) = places_s[None] - places_t[:, None], self.seen.reach
            seen &= ((ahead >= -left) & (ahead <= right))[None]
        return jnp.where(seen, scores, HIDDEN)

    def dropped(
        self, weights_Nts: jax.Array, b: jax.Array, x: jax.Array, y: jax.Array
    ) -> jax.Array:
        """The weights, or their gradients, with some at 0 and the others scaled up."""
        if self.dropping is None:
            return weights_Nts
        places_t, places_s = self._places(x, y)
        rows_N = self.dropping.rows_B[b] * self.heads + self.dropping.heads_N
        tokens_Nt = (rows_N[:, None] * self.shape[1] + places_t[None]).astype(jnp.uint32)
        first, last = self.dropping.words
        kept = kept_weights(first, last, tokens_Nt, places_s, self.rate)
        return jnp.where(kept, weights_Nts * (1.0 / (1.0 - self.rate)), 0.0)

    def _places(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = jnp.arange(max(self.t, self.s), dtype=jnp.int32)
        return x * self.t + places[: self.t], y * self.s + places[: self.s]


def _dot(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _put(whole: jax.Array, part: jax.Array, *place: jax.Array) -> jax.Array:
    """`whole` with `part` at whole[*place]."""
    at: Any = (*place, *(0,) * part.ndim)
    return jax.lax.dynamic_update_slice(whole, part.reshape((1,) * len(place) + part.shape), at)
