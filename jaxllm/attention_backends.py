"""Self-attention by three implementations: XLA's own, cuDNN's on NVIDIA GPUs, splash on TPUs.

`make_attend` is called once in a call of the model, with what hides keys from queries; what it
gives is called once in each block. An implementation raises for what it cannot honour: a mask, a
window or dropout is never ignored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.attention import attention_mask, dot_product_attention, window_mask
from jaxllm.errors import InputError
from jaxllm.layers import Key
from jaxllm.sharding import LETTER_AXES, in_mesh

_LANES = 128  # splash works on blocks of so many tokens, or a multiple


class Attend:
    """Self-attention over the rows of one batch, in XLA; `fused` is another implementation's.

    That keeps no weights: these cannot be dropped, nor returned. The few queries of a last block
    (`queries_BP`) are computed in XLA by all of them.

    Args:
        length: T, tokens of a row.
        padding_BS, segments_BT: see `attention.attention_mask`.
        radius: a token sees those at most so many places away; None = all.
    """

    name = "xla"
    fused: Callable[..., jax.Array] | None = None  # (q, k, v, is_global) -> out_BTNH

    def __init__(
        self,
        length: int,
        padding_BS: jax.Array | None,
        segments_BT: jax.Array | None,
        radius: int | None = None,
    ):
        self.length, self.radius = length, radius
        self.padding_BS, self.segments_BT = padding_BS, segments_BT
        self.mask = attention_mask(padding_BS, segments_BT)
        self.window = None if radius is None else window_mask(length, radius)

    def __call__(
        self,
        q_BTNH: jax.Array,
        k_BTNH: jax.Array,
        v_BTNH: jax.Array,
        *,
        dropout_rate: float = 0.0,
        key: Key = None,
        queries_BP: jax.Array | None = None,
        is_global: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(out_BTNH, weights_BNTS, or None where they are not kept).

        queries_BP: positions of the tokens in `q`, which then has P of them; None = all.
        is_global: bool []; where true, `radius` has no effect.

        Raises:
            InputError: dropout, types or shapes that the implementation does not compute.
        """
        if self.fused is not None:
            if dropout_rate > 0 and key is not None:
                raise InputError(
                    f"model.attention: {self.name} cannot drop attention weights, and the model "
                    f"drops {dropout_rate:g} of them; set it to 0 in model.config "
                    "(attention_probs_dropout_prob, attention_dropout), or model.attention: xla"
                )
            if queries_BP is None:
                return self.fused(q_BTNH, k_BTNH, v_BTNH, is_global), None
        mask = self.visible(is_global)
        if mask is not None and queries_BP is not None and mask.shape[2] > 1:
            mask = tokens_at(mask, queries_BP)
        return dot_product_attention(
            q_BTNH, k_BTNH, v_BTNH, mask=mask, dropout_rate=dropout_rate, key=key
        )

    def visible(self, is_global: jax.Array | None) -> jax.Array | None:
        """The mask [B or 1, 1, T or 1, S]; None where every token sees every token."""
        if self.window is None:
            return self.mask
        window = self.window if is_global is None else self.window | is_global
        return window if self.mask is None else self.mask & window


class Cudnn(Attend):
    """cuDNN's flash attention, through JAX. Masks, windows among them, are added to the scores."""

    name = "cudnn"

    def fused(self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any) -> jax.Array:
        _, T, _, H = q.shape
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            raise InputError(
                f"model.attention: cudnn does not compute in {q.dtype}; set model.dtype: "
                "bfloat16, or model.attention: xla"
            )
        if H % 8 or H > 128:
            raise InputError(
                f"model.attention: cudnn takes heads of a size that 8 divides, at most 128, the "
                f"model's is {H}; set model.attention: xla"
            )
        if T % 2:
            raise InputError(
                f"model.attention: cudnn takes rows of an even number of tokens, found {T}; "
                "choose an even data.max_length (and data.buckets), or model.attention: xla"
            )
        mask = self.visible(is_global)
        if mask is not None:  # cuDNN broadcasts over heads and rows, not over tokens
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], self.length, self.length))
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


class Splash(Attend):
    """Splash attention, a Pallas kernel for TPU: segments and windows without a mask in memory."""

    name = "splash"

    def fused(self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any) -> jax.Array:
        if self.length % _LANES:
            raise InputError(
                f"model.attention: splash takes rows of a multiple of {_LANES} tokens, found "
                f"{self.length}; choose such a data.max_length (and data.buckets), or "
                "model.attention: xla"
            )
        shape = (len(q), self.length)
        ids_BT = self.segments_BT if self.segments_BT is not None else jnp.ones(shape, jnp.int32)
        keys_BS = ids_BT if self.padding_BS is None else jnp.where(self.padding_BS != 0, ids_BT, -1)
        scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        call = self.everywhere if self.radius is None else self.near
        if is_global is not None and self.radius is not None:

            def call(*arrays: jax.Array) -> jax.Array:
                return jax.lax.cond(is_global, self.everywhere, self.near, *arrays)

        return _over_mesh(call)(q * scale, k, v, ids_BT, keys_BS)

    def everywhere(self, *arrays: jax.Array) -> jax.Array:
        return splash(*arrays, radius=None)

    def near(self, *arrays: jax.Array) -> jax.Array:
        return splash(*arrays, radius=self.radius)


ATTENDS: dict[str, type[Attend]] = {"xla": Attend, "cudnn": Cudnn, "splash": Splash}


def make_attend(
    name: str,
    length: int,
    padding_BS: jax.Array | None,
    segments_BT: jax.Array | None,
    *,
    radius: int | None = None,
    weights: bool = False,
) -> Attend:
    """The implementation `name` for rows of `length` tokens, see `Attend`.

    Raises:
        InputError: the `weights` are asked for, and it has none.
    """
    attend = ATTENDS[name]
    if weights and attend.fused is not None:
        raise InputError(
            f"output_attentions: {name} attention has no weights to give; use model.attention: xla"
        )
    return attend(length, padding_BS, segments_BT, radius)


def splash(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    q_ids_BT: jax.Array,
    k_ids_BT: jax.Array,
    *,
    radius: int | None,
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
    mask: Any = pallas.FullMask((T, T))
    if radius is not None:
        mask = pallas.LocalMask((T, T), window_size=(radius, radius), offset=0)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * N), block_sizes=blocks, head_shards=1, q_seq_shards=1
    )

    def row(q: jax.Array, k: jax.Array, v: jax.Array, q_ids: jax.Array, k_ids: jax.Array) -> Any:
        return kernel(q, k, v, segment_ids=pallas.SegmentIds(q=q_ids, kv=k_ids))

    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTNH, v_BTNH))
    return jax.vmap(row)(q, k, v, q_ids_BT, k_ids_BT).swapaxes(1, 2)


def tokens_at(a_BXTY: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """a_BXPY: masks and rotary tables of the tokens at the given positions; B may be 1 in `a`."""
    a_BXTY = jnp.broadcast_to(a_BXTY, (positions_BP.shape[0], *a_BXTY.shape[1:]))
    return jnp.take_along_axis(a_BXTY, positions_BP[:, None, :, None], axis=2)


def _over_mesh(call: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`call(q, k, v, ids, ids)` on each device's rows and heads: no compiler splits a kernel."""
    if not in_mesh():
        return call
    batch, heads = LETTER_AXES["B"], LETTER_AXES["N"]
    rows, ids = P(batch, None, heads, None), P(batch, None)
    return jax.shard_map(
        call, in_specs=(rows, rows, rows, ids, ids), out_specs=rows, check_vma=False
    )
