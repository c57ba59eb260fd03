"""An attention whose queries see what a `Visibility` says: XLA's, and what others share with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxllm.attention.scores import dot_product_attention, repeat_heads
from jaxllm.attention.visibility import Visibility
from jaxllm.errors import InputError
from jaxllm.nn.layers import Key
from jaxllm.nn.sharding import LETTER_AXES, in_mesh

ROWS = "choose such a data.max_length (and data.buckets)"
XLA = "model.attention: xla"

# (q_BTNH, k_BSNH, v_BSNH, visibility, dropout rate, key) -> out_BTNH
Fused = Callable[..., jax.Array]


class Attend:
    """Attention in XLA; `fused` is another implementation's.

    That keeps no weights to return, and drops some only where `drops` says so. It is asked for
    whole rows only (`Visibility.is_rows`) unless it is `general`; the few queries of a last block
    (`at`) are computed in XLA by all of them.
    """

    name = "xla"
    platform: str | None = None  # of jax, where there is one only
    fused: Fused | None = None
    drops = True  # weights, where asked to
    general = True  # takes biases, places, and queries that are not those of the keys

    def __init__(self, visibility: Visibility):
        if not (visibility.is_rows or self.general):
            raise self.refusal("attends from whole rows to themselves, without a bias")
        self.visibility = visibility

    def __call__(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        *,
        dropout_rate: float = 0.0,
        key: Key = None,
        is_global: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(out_BTNH, weights_BNTS, or None where they are not kept).

        is_global: bool []; where true, the window of the visibility has no effect.

        Raises:
            InputError: dropout, types or shapes that the implementation does not compute.
        """
        visibility = self.visibility.of_layer(is_global)
        self.check_dropout(dropout_rate, key)
        if self.fused is not None:
            rate = 0.0 if key is None else dropout_rate
            return self.fused(q_BTNH, k_BSKH, v_BSKH, visibility, rate, key), None
        return in_xla(q_BTNH, k_BSKH, v_BSKH, visibility, dropout_rate, key)

    def at(self, queries_BP: jax.Array) -> "Attend":
        """For those P queries of each row; they are computed in XLA."""
        few = Attend(self.visibility.at(queries_BP))
        few.drops, few.name = self.drops, self.name
        return few

    def check_dropout(self, rate: float, key: Key) -> None:
        if not self.drops and key is not None and rate > 0:
            raise InputError(
                f"model.attention: {self.name} cannot drop attention weights, and the model "
                f"drops {rate:g} of them; set it to 0 in model.config "
                "(attention_probs_dropout_prob, attention_dropout), or model.attention: xla"
            )

    def check_dtype(self, dtype: Any) -> None:
        if dtype not in (jnp.bfloat16, jnp.float16):
            raise self.refusal(f"does not compute in {dtype}", "set model.dtype: bfloat16")

    def refusal(self, what: str, way_out: str | None = None) -> InputError:
        rest = "set model.attention: xla" if way_out is None else f"{way_out}, or {XLA}"
        return InputError(f"model.attention: {self.name} {what}; {rest}")


def in_xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    visibility: Visibility,
    rate: float,
    key: Key,
) -> tuple[jax.Array, jax.Array]:
    """(out_BTNH, weights_BNTS), see `dot_product_attention`."""
    mask, bias = visibility.mask(), visibility.bias_BNTS
    return dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask, bias=bias, dropout_rate=rate, key=key
    )


def row_ids(visibility: Visibility, rows: int) -> tuple[jax.Array, jax.Array]:
    """int32 [B, T]: the ids of the queries and of the keys of whole rows."""
    q_ids, k_ids = visibility.q_ids_BT, visibility.k_ids_BS
    ones = jnp.ones((rows, visibility.queries), jnp.int32)
    return ones if q_ids is None else q_ids, ones if k_ids is None else k_ids


def tokens_at(a_BXTY: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """a_BXPY: rotary tables of the tokens at the given positions; B may be 1 in `a`."""
    a_BXTY = jnp.broadcast_to(a_BXTY, (positions_BP.shape[0], *a_BXTY.shape[1:]))
    return jnp.take_along_axis(a_BXTY, positions_BP[:, None, :, None], axis=2)


def over_mesh(call: Callable[..., jax.Array], *specs: Any) -> Callable[..., jax.Array]:
    """`call(q, k, v, …)` on each device's rows and heads: no compiler splits a kernel.

    Keys and values get as many heads as queries have. specs: of the arguments after the three.
    """

    def alike(q: jax.Array, k: jax.Array, v: jax.Array, *rest: Any) -> jax.Array:
        heads = q.shape[2]
        return split(q, repeat_heads(k, heads), repeat_heads(v, heads), *rest)

    split = call
    if in_mesh():
        rows = P(LETTER_AXES["B"], None, LETTER_AXES["N"], None)
        split = jax.shard_map(
            call, in_specs=(rows, rows, rows, *specs), out_specs=rows, check_vma=False
        )
    return alike
