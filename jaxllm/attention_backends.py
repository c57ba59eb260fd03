"""Self-attention by five implementations: XLA's own, one in blocks for CPUs, cuDNN's and one in
Triton on NVIDIA GPUs, splash on TPUs.

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

from jaxllm import blocked_attention
from jaxllm.attend import ROWS, Attend, over_mesh
from jaxllm.attention import dot_product_attention
from jaxllm.attention_blocks import Dropping, Visible, differentiated_as, visible
from jaxllm.errors import InputError
from jaxllm.layers import Key, key_words
from jaxllm.sharding import LETTER_AXES

_LANES = 128  # splash works on blocks of so many tokens, or a multiple


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
        return over_mesh(call, ids, ids)(q * scale, k, v, ids_BT, keys_BS)

    def everywhere(self, *arrays: jax.Array) -> jax.Array:
        return splash(*arrays, radius=None)

    def near(self, *arrays: jax.Array) -> jax.Array:
        return splash(*arrays, radius=self.radius)


class Skipping(Attend):
    """What the two of jaxllm's own share: they drop weights and skip blocks that nobody sees.

    A subclass sets `blocks`, tokens of a block of queries and of keys, and has
    `flash(heads, rate)`: (q, k, v, seen, dropping) -> out_BTNH on one device, of `heads` in all.
    """

    flash: Callable[[int, float], Callable[..., jax.Array]]
    blocks: tuple[int, int] | None = None  # None: not for such rows

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.near: Any = None  # what queries see: attention_blocks.Visible
        self.everywhere: Any = None
        known = self.padding_BS if self.segments_BT is None else self.segments_BT
        masked = known is not None or self.radius is not None
        if masked and self.blocks is not None:
            ids = self.ids(1 if known is None else len(known))
            self.near = visible(*ids, self.radius, self.blocks)
            if self.radius is not None:
                self.everywhere = visible(*ids, self.length, self.blocks)

    def seen(self, is_global: Any, rows: int) -> Visible | None:
        """What queries see in each row; None where that is everything."""
        seen: Any = self.near
        if is_global is not None and self.radius is not None:
            seen = jax.tree.map(partial(jnp.where, is_global), self.everywhere, seen)
        return None if seen is None else seen.of_rows(rows)

    def skipping(
        self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any, rate: float, key: Key
    ) -> jax.Array:
        return self.over_devices(q, k, v, self.seen(is_global, len(q)), rate, key)

    def over_devices(
        self, q: jax.Array, k: jax.Array, v: jax.Array, seen: Any, rate: float, key: Key
    ) -> jax.Array:
        """`flash` on each device's rows and heads."""
        B, _, N, _ = q.shape
        dropping: Any = None
        if rate > 0 and key is not None:
            numbers = (jnp.arange(n, dtype=jnp.int32) for n in (B, N))
            dropping = Dropping(jnp.stack(key_words(key)), *numbers)
        batch: Any = P(LETTER_AXES["B"])
        heads: Any = P(LETTER_AXES["N"])
        one: Any = P()
        specs = (
            jax.tree.map(lambda x: one if x.ndim == 1 else batch, seen),
            None if dropping is None else Dropping(one, batch, heads),
        )
        return over_mesh(self.flash(N, rate), *specs)(q, k, v, seen, dropping)


class Blocked(Skipping):
    """`blocked_attention`: blocks that a CPU's caches hold. Where there are none, it is XLA's.

    So is what a gradient is asked of, where a block holds a whole row.
    """

    name = "blocked"

    def __init__(self, length: int, *args: Any):
        self.blocks = blocked_attention.blocks_of(length)
        super().__init__(length, *args)
        if self.blocks is not None:
            one = length == self.blocks[1]
            self.fused = self.forward_alone if one else self.skipping

    def flash(self, heads: int, rate: float) -> Callable[..., jax.Array]:
        assert self.blocks is not None
        static = blocked_attention.Static(heads, rate, self.blocks)
        return partial(blocked_attention.blocked_attention, static)

    def forward_alone(
        self, q: jax.Array, k: jax.Array, v: jax.Array, is_global: Any, rate: float, key: Key
    ) -> jax.Array:
        def in_xla(q: jax.Array, k: jax.Array, v: jax.Array, masks: Any) -> jax.Array:
            return dot_product_attention(q, k, v, mask=masks[0], dropout_rate=rate, key=key)[0]

        def in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, masks: Any) -> jax.Array:
            return self.over_devices(q, k, v, masks[1], 0.0, None)

        call = in_xla if rate > 0 else differentiated_as(in_xla, in_blocks)
        return call(q, k, v, (self.visible(is_global), self.seen(is_global, len(q))))


class Triton(Skipping):
    """`flash_attention`, kernels for NVIDIA GPUs."""

    name = "triton"
    platform = "gpu"

    def __init__(self, length: int, *args: Any):
        from jaxllm import flash_attention  # Pallas' Triton may leave jax one day

        self.kernels = flash_attention
        self.block = flash_attention.BLOCK
        if length % self.block == 0:
            self.blocks = self.block, self.block
        super().__init__(length, *args)

    def fused(self, q: jax.Array, *rest: Any) -> jax.Array:
        H = q.shape[-1]
        self.check_dtype(q.dtype)
        if H not in (16, 32, 64, 128):
            raise self.refusal(f"takes heads of 16, 32, 64 or 128, found {H}")
        if self.blocks is None:
            blocks = f"a multiple of {self.block} tokens"
            raise self.refusal(f"takes rows of {blocks}, found {self.length}", ROWS)
        return self.skipping(q, *rest)

    def flash(self, heads: int, rate: float) -> Callable[..., jax.Array]:
        return partial(self.kernels.flash_attention, self.kernels.Static(heads, rate))


ATTENDS: dict[str, type[Attend]] = {
    "xla": Attend,
    "blocked": Blocked,
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
        InputError: there is no such implementation, or the `weights` are asked for and it has none.
    """
    if name not in ATTENDS:
        raise InputError(f"attention: found {name!r}, expected one of {', '.join(ATTENDS)}")
    attend = ATTENDS[name](length, padding_BS, segments_BT, radius)
    if weights and attend.fused is not None:
        raise InputError(
            f"output_attentions: {name} attention has no weights to give; use model.attention: xla"
        )
    return attend


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
