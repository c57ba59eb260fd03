"""Splash attention, a Pallas kernel for TPU: segments and windows without a mask in memory."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.attention.base import ROWS, Attend, over_mesh, row_ids
from jaxllm.attention.visibility import Visibility
from jaxllm.nn.sharding import LETTER_AXES

_LANES = 128  # splash works on blocks of so many tokens, or a multiple


class Splash(Attend):
    """Refuses dropout of weights, and rows that are no multiple of 128 tokens."""

    name = "splash"
    platform = "tpu"
    drops = False
    general = False

    def fused(
        self, q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, *unused: Any
    ) -> jax.Array:
        if visibility.queries % _LANES:
            raise self.refusal(
                f"takes rows of a multiple of {_LANES} tokens, found {visibility.queries}", ROWS
            )
        ids = row_ids(visibility, len(q))
        scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)

        def near(*arrays: jax.Array) -> jax.Array:
            return splash(*arrays, causal=visibility.causal, window=visibility.window)

        def everywhere(*arrays: jax.Array) -> jax.Array:
            return splash(*arrays, causal=visibility.causal, window=None)

        call = near
        if visibility.is_global is not None and visibility.window is not None:

            def call(*arrays: jax.Array) -> jax.Array:
                return jax.lax.cond(visibility.is_global, everywhere, near, *arrays)

        spec = P(LETTER_AXES["B"], None)
        return over_mesh(call, spec, spec)(q * scale, k, v, *ids)


def splash(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    q_ids_BT: jax.Array,
    k_ids_BT: jax.Array,
    *,
    causal: bool,
    window: tuple[int, int] | None,
) -> jax.Array:
    """out_BTNH on one device; a query sees the keys of its id. Scores are not scaled here."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    _, T, N, _ = q_BTNH.shape
    size = next(size for size in (512, 384, 256, _LANES) if T % size == 0)
    blocks = pallas.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        use_fused_bwd_kernel=True,
    )
    mask: Any = pallas.CausalMask((T, T)) if causal else pallas.FullMask((T, T))
    if window is not None:
        left, right = window
        reach = (left, 0 if causal else right)
        mask = pallas.LocalMask((T, T), window_size=reach, offset=0)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * N), block_sizes=blocks, head_shards=1, q_seq_shards=1
    )

    def row(q: jax.Array, k: jax.Array, v: jax.Array, q_ids: jax.Array, k_ids: jax.Array) -> Any:
        return kernel(q, k, v, segment_ids=pallas.SegmentIds(q=q_ids, kv=k_ids))

    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    return jax.vmap(row)(q, k, v, q_ids_BT, k_ids_BT).swapaxes(1, 2)
