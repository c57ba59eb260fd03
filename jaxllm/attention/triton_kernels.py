"""The three kernels of flash attention: forward, gradients of keys and values, of queries.

Each program owns BLOCK tokens of one row and head, and goes through the blocks of the other side.
Scores are in powers of two: exp2 is what the hardware has.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxllm.attention.blocks import HIDDEN, kept_weights

# Tokens of a program, and of the other side at once; a row is a multiple of it. The fastest of
# eight plans for each kernel on an H200, with and without dropout, rows of 128 and of 512.
BLOCK, WARPS, STAGES = 64, 4, 3
_LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Static:
    """Heads of the whole model, and the dropout rate: what is compiled in."""

    heads: int
    rate: float = 0.0


class Block(NamedTuple):
    """BLOCK tokens of the row."""

    number: Any

    @property
    def tokens(self) -> Any:
        return pl.ds(self.number * BLOCK, BLOCK)

    @property
    def places(self) -> jax.Array:
        return self.number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)


class Tile:
    """One program: its refs by name, and what is between some queries and some keys."""

    def __init__(self, static: Static, refs: dict[str, Any], length: int):
        self.static, self.refs, self.length = static, refs, length
        self.width = refs["k"].shape[-1]
        self.own = Block(pl.program_id(0))
        self.kept = 1.0 / (1.0 - static.rate)  # the scale of weights that are not dropped

    def __getattr__(self, name: str) -> Any:
        return self.refs[name]

    def zeros(self) -> jax.Array:
        return jnp.zeros((BLOCK, self.width), jnp.float32)

    def loop(self, ranges: str, body: Callable[[Block, Any], Any], carry: Any) -> Any:
        """`body(block, carry)` over the other side's blocks, those in `ranges` where given."""
        first, end = 0, self.length // BLOCK
        if ranges in self.refs:
            first, end = (self.refs[ranges][self.own.number, i] for i in (0, 1))
        return jax.lax.fori_loop(first, end, lambda i, c: body(Block(i), c), carry)

    def scores(self, q: jax.Array, k: jax.Array, queries: Block, keys: Block) -> jax.Array:
        """[queries, keys], times log2(e), hidden ones at HIDDEN."""
        scores = triton.dot(q, k.T) * (self.width**-0.5 * _LOG2E)
        if "q_ids_BT" not in self.refs:
            return scores
        seen = self.q_ids_BT[queries.tokens][:, None] == self.k_ids_BT[keys.tokens][None, :]
        if "reach" in self.refs:
            ahead = keys.places[None, :] - queries.places[:, None]
            seen &= (ahead >= -self.reach[0]) & (ahead <= self.reach[1])
        return jnp.where(seen, scores, HIDDEN)

    def mask(self, queries: Block, keys: Block) -> jax.Array | float:
        """[queries, keys]: 1 for the weights that are kept and 0 for those that are dropped."""
        if "words" not in self.refs:
            return 1.0
        row = self.rows_B[0] * self.static.heads + self.heads_N[0]
        tokens = (row * self.length + queries.places).astype(jnp.uint32)
        words = self.words[0], self.words[1]
        return kept_weights(*words, tokens, keys.places, self.static.rate).astype(jnp.float32)

    def between(self, *arrays: jax.Array, queries: Block, keys: Block) -> tuple:
        """(weights, gradient of the scores) [queries, keys]; their scales are left to the end."""
        q, k, v, g = arrays
        tokens = slice(None) if queries is self.own else queries.tokens
        lse, delta = self.lse[tokens], self.delta[tokens]
        weights = jnp.exp2(self.scores(q, k, queries, keys) - lse[:, None])
        mask = self.mask(queries, keys)
        dweights = triton.dot(g, v.T) * (mask * self.kept)
        return weights * mask, weights * (dweights - delta[:, None])


def forward_kernel(tile: Tile) -> None:
    q = tile.q[...]

    def body(keys: Block, carry: tuple) -> tuple:
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


def keys_kernel(tile: Tile) -> None:
    k, v = tile.k[...], tile.v[...]

    def body(queries: Block, carry: tuple) -> tuple:
        dk, dv = carry
        q, g = tile.q[queries.tokens, :], tile.g[queries.tokens, :]
        weights, dscores = tile.between(q, k, v, g, queries=queries, keys=tile.own)
        dv = dv + triton.dot(weights.astype(g.dtype).T, g)
        return dk + triton.dot(dscores.astype(q.dtype).T, q), dv

    dk, dv = tile.loop("queries_BY2", body, (tile.zeros(), tile.zeros()))
    tile.dk[...] = (dk * tile.width**-0.5).astype(tile.dk.dtype)
    tile.dv[...] = (dv * tile.kept).astype(tile.dv.dtype)


def queries_kernel(tile: Tile) -> None:
    q, g = tile.q[...], tile.g[...]

    def body(keys: Block, dq: jax.Array) -> jax.Array:
        k, v = tile.k[keys.tokens, :], tile.v[keys.tokens, :]
        _, dscores = tile.between(q, k, v, g, queries=tile.own, keys=keys)
        return dq + triton.dot(dscores.astype(k.dtype), k)

    dq = tile.loop("keys_BX2", body, tile.zeros())
    tile.dq[...] = (dq * tile.width**-0.5).astype(tile.dq.dtype)
