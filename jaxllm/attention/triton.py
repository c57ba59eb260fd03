"""Flash attention for NVIDIA GPUs, a Pallas kernel lowered by Triton: dropout, segments, windows.

Softmax block by block (Dao, 2023, FlashAttention-2): scores and dropout masks are computed where
they are used, forward and backward, and are never in memory. Blocks of keys that no query of a
block sees are skipped, so packed rows cost what their segments cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxllm.attention.blocks import BlockRanges, Dropping, differentiable
from jaxllm.attention.triton_kernels import (
    BLOCK,
    STAGES,
    WARPS,
    Static,
    Tile,
    forward_kernel,
    keys_kernel,
    queries_kernel,
)


def _forward(
    static: Static,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: BlockRanges | None,
    dropping: Dropping | None,
) -> tuple[jax.Array, tuple]:
    call = _Call(static, q, seen, dropping)
    B, T, N, _ = q.shape
    out, lse_BNT = call(
        forward_kernel,
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
    dk, dv = call(keys_kernel, arrays, owned=("k", "v"), outputs={"dk": k, "dv": v})
    owned = ("q", "g", "lse", "delta")
    (dq,) = call(queries_kernel, arrays, owned=owned, outputs={"dq": q})
    return dq, dk, dv, None, None


# T is a multiple of BLOCK, H a power of two from 16 to 128.
flash_attention = differentiable(_forward, _backward)


@dataclass(frozen=True)
class _Call:
    """Calls of kernels on a grid of (own tokens, row, head)."""

    static: Static
    like: jax.Array  # [B, T, N, H]
    seen: BlockRanges | None
    dropping: Dropping | None

    def __call__(
        self,
        kernel: Callable[[Tile], None],
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
            known = {name: x for name, x in self.seen._asdict().items() if x is not None}
            given |= known
            specs |= {name: _of_row(x) for name, x in known.items() if name != "reach"}
        if "reach" in given:
            specs["reach"] = pl.BlockSpec((2,), lambda i, b, n: (0,))
        if self.dropping is not None:
            given |= self.dropping._asdict()
            specs["words"] = pl.BlockSpec((2,), lambda i, b, n: (0,))
            specs["rows_B"] = pl.BlockSpec((1,), lambda i, b, n: (b,))
            specs["heads_N"] = pl.BlockSpec((1,), lambda i, b, n: (n,))

        def run(*refs: Any) -> None:
            named = dict(zip([*given, *outputs], refs, strict=True))
            kernel(Tile(self.static, named, T))

        return pl.pallas_call(
            run,
            grid=(T // BLOCK, B, N),
            in_specs=[specs[name] for name in given],
            out_specs=[_spec(x, BLOCK) for x in outputs.values()],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs.values()],
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            name=kernel.__name__,
        )(*given.values())


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
