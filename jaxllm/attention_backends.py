"""Self-attention by four implementations: XLA's own, cuDNN's and one in Triton on NVIDIA GPUs,
splash on TPUs.

`make_attend` is called once in a call of the model, with what hides keys from queries; what it
gives is called once in each block. An implementation raises for what it cannot honour: a mask, a
window or dropout is never ignored.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.attention import attention_mask, dot_product_attention, window_mask
from jaxllm.errors import InputError
from jaxllm.layers import Key, key_words
from jaxllm.sharding import LETTER_AXES, in_mesh

ROWS = "choose such a data.max_length (and data.buckets)"
XLA = "model.attention: xla"
_LANES = 128  # splash works on blocks of so many tokens, or a multiple


class Attend:
    """Self-attention over the rows of one batch, in XLA; `fused` is another implementation's.

    That keeps no weights to return, and drops some only where `drops` says so. The few queries of
    a last block (`queries_BP`) are computed in XLA by all of them.

    Args:
        length: T, tokens of a row.
        padding_BS, segments_BT: see `attention.attention_mask`.
        radius: a token sees those at most so many places away; None = all.
    """

    name = "xla"
    platform: str | None = None  # of jax, where there is one only
    fused: Callable[..., jax.Array] | None = None  # (q, k, v, is_global, rate, key) -> out_BTNH
    drops = True  # weights, where asked to

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
            rate = 0.0 if key is None else dropout_rate
            if rate > 0 and not self.drops:
                raise InputError(
                    f"model.attention: {self.name} cannot drop attention weights, and the model "
                    f"drops {dropout_rate:g} of them; set it to 0 in model.config "
                    "(attention_probs_dropout_prob, attention_dropout), or model.attention: xla"
                )
            if queries_BP is None:
                return self.fused(q_BTNH, k_BTNH, v_BTNH, is_global, rate, key), None
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

    def check_dtype(self, dtype: Any) -> None:
        if dtype not in (jnp.bfloat16, jnp.float16):
            raise self.refusal(f"does not compute in {dtype}", "set model.dtype: bfloat16")

    def refusal(self, what: str, way_out: str | None = None) -> InputError:
        rest = "set model.attention: xla" if way_out is None else f"{way_out}, or {XLA}"
        return InputError(f"model.attention: {self.name} {what}; {rest}")

    def ids(self, rows: int) -> tuple[jax.Array, jax.Array]:
        """(those of queries, those of keys) [B, T]: but for the window, a query sees its id."""
        ids_BT = self.segments_BT
        if ids_BT is None:
            ids_BT = jnp.ones((rows, self.length), jnp.int32)
        return ids_BT, ids_BT if self.padding_BS is None else jnp.where(
            self.padding_BS != 0, ids_BT, -1
        )


class Cudnn(Attend):
    """cuDNN's flash attention, through JAX. Masks, windows among them, are added to the scores."""

    name = "cudnn"
    platform = "gpu"
    drops = False

    def fused(
        self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any, *unused: Any
    ) -> jax.Array:
        _, T, _, H = q.shape
        self.check_dtype(q.dtype)
        if H % 8 or H > 128:
            raise self.refusal(f"takes heads of a size that 8 divides, at most 128, found {H}")
        if T % 2:
            raise self.refusal(f"takes rows of an even number of tokens, found {T}", ROWS)
        mask = self.visible(is_global)
        if mask is not None:  # cuDNN broadcasts over heads and rows, not over tokens
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], self.length, self.length))
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


class Splash(Attend):
    """Splash attention, a Pallas kernel for TPU: segments and windows without a mask in memory."""

    name = "splash"
    platform = "tpu"
    drops = False

    def fused(
        self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any, *unused: Any
    ) -> jax.Array:
        if self.length % _LANES:
            raise self.refusal(
                f"takes rows of a multiple of {_LANES} tokens, found {self.length}", ROWS
            )
        ids_BT, keys_BS = self.ids(len(q))
        scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        call = self.everywhere if self.radius is None else self.near
        if is_global is not None and self.radius is not None:

            def call(*arrays: jax.Array) -> jax.Array:
                return jax.lax.cond(is_global, self.everywhere, self.near, *arrays)

        ids = P(LETTER_AXES["B"], None)
        return _over_mesh(call, ids, ids)(q * scale, k, v, ids_BT, keys_BS)

    def everywhere(self, *arrays: jax.Array) -> jax.Array:
        return splash(*arrays, radius=None)

    def near(self, *arrays: jax.Array) -> jax.Array:
        return splash(*arrays, radius=self.radius)


class Triton(Attend):
    """`flash_attention`: the one that drops weights and skips what is hidden."""

    name = "triton"
    platform = "gpu"

    def __init__(self, *args: Any):
        from jaxllm import flash_attention  # Pallas' Triton may leave jax one day

        super().__init__(*args)
        self.flash = flash_attention
        self.near: Any = None  # what queries see: flash_attention.Visible
        self.everywhere: Any = None
        known = self.padding_BS if self.segments_BT is None else self.segments_BT
        masked = known is not None or self.radius is not None
        if masked and self.length % flash_attention.BLOCK == 0:
            ids = self.ids(1 if known is None else len(known))
            self.everywhere = self.near = flash_attention.visible(*ids, self.length)
            if self.radius is not None:
                self.near = flash_attention.visible(*ids, self.radius)

    def fused(
        self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any, rate: float, key: Key
    ) -> jax.Array:
        B, _, N, H = q.shape
        self.check_dtype(q.dtype)
        if H not in (16, 32, 64, 128):
            raise self.refusal(f"takes heads of 16, 32, 64 or 128, found {H}")
        if self.length % self.flash.BLOCK:
            blocks = f"a multiple of {self.flash.BLOCK} tokens"
            raise self.refusal(f"takes rows of {blocks}, found {self.length}", ROWS)
        seen: Any = self.near
        dropping: Any = None
        if is_global is not None and seen is not None:
            seen = jax.tree.map(partial(jnp.where, is_global), self.everywhere, seen)
        if seen is not None:
            seen = seen.of_rows(B)
        if rate > 0 and key is not None:
            numbers = (jnp.arange(n, dtype=jnp.int32) for n in (B, N))
            dropping = self.flash.Dropping(jnp.stack(key_words(key)), *numbers)
        batch, heads = P(LETTER_AXES["B"]), P(LETTER_AXES["N"])
        specs = (
            None if seen is None else type(seen)(*(P() if x.ndim == 1 else batch for x in seen)),
            None if dropping is None else type(dropping)(P(), batch, heads),
        )
        static = self.flash.Static(N, rate)
        call = _over_mesh(partial(self.flash.flash_attention, static), *specs)
        return call(q, k, v, seen, dropping)


ATTENDS: dict[str, type[Attend]] = {
    "xla": Attend,
    "cudnn": Cudnn,
    "triton": Triton,
    "splash": Splash,
}


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


def _over_mesh(call: Callable[..., jax.Array], *specs: Any) -> Callable[..., jax.Array]:
    """`call(q, k, v, …)` on each device's rows and heads: no compiler splits a kernel.

    specs: of the arguments after the three.
    """
    if not in_mesh():
        return call
    rows = P(LETTER_AXES["B"], None, LETTER_AXES["N"], None)
    return jax.shard_map(call, in_specs=(rows, rows, rows, *specs), out_specs=rows, check_vma=False)
