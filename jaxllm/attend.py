"""Self-attention over the rows of a batch: what its implementations share, and XLA's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.attention import attention_mask, dot_product_attention, window_mask
from jaxllm.errors import InputError
from jaxllm.layers import Key
from jaxllm.sharding import LETTER_AXES, in_mesh

ROWS = "choose such a data.max_length (and data.buckets)"
XLA = "model.attention: xla"


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


def tokens_at(a_BXTY: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """a_BXPY: masks and rotary tables of the tokens at the given positions; B may be 1 in `a`."""
    a_BXTY = jnp.broadcast_to(a_BXTY, (positions_BP.shape[0], *a_BXTY.shape[1:]))
    return jnp.take_along_axis(a_BXTY, positions_BP[:, None, :, None], axis=2)


def over_mesh(call: Callable[..., jax.Array], *specs: Any) -> Callable[..., jax.Array]:
    """`call(q, k, v, …)` on each device's rows and heads: no compiler splits a kernel.

    specs: of the arguments after the three.
    """
    if not in_mesh():
        return call
    rows = P(LETTER_AXES["B"], None, LETTER_AXES["N"], None)
    return jax.shard_map(call, in_specs=(rows, rows, rows, *specs), out_specs=rows, check_vma=False)
