"""Attention by name: XLA's own, one in blocks for CPUs, cuDNN's and one in Triton on NVIDIA GPUs,
splash on TPUs, or a function that the caller gives.

`make_attend` is called once in a call of the model, with what queries see; what it gives is called
once in each block. An implementation raises for what it cannot honour: a mask, a window or dropout
is never ignored.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxllm.attention import blocked
from jaxllm.attention.base import ROWS, Attend, in_xla, over_mesh, row_ids
from jaxllm.attention.blocks import BlockRanges, Dropping, block_ranges, differentiated_as
from jaxllm.attention.scores import repeat_heads
from jaxllm.attention.splash import Splash
from jaxllm.attention.visibility import Visibility
from jaxllm.errors import InputError
from jaxllm.nn.layers import Key, key_words
from jaxllm.nn.sharding import LETTER_AXES


class Cudnn(Attend):
    """cuDNN's flash attention, through JAX. Masks, windows among them, are added to the scores."""

    name = "cudnn"
    platform = "gpu"
    drops = False

    def fused(
        self, q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, *unused: Any
    ) -> jax.Array:
        _, T, _, H = q.shape
        self.check_dtype(q.dtype)
        if H % 8 or H > 128:
            raise self.refusal(f"takes heads of a size that 8 divides, at most 128, found {H}")
        if T % 2:
            raise self.refusal(f"takes rows of an even number of tokens, found {T}", ROWS)
        mask = visibility.mask()
        if mask is not None:  # cuDNN broadcasts over heads and rows, not over tokens
            mask = jnp.broadcast_to(mask, (*mask.shape[:2], T, k.shape[1]))
        options: dict[str, Any] = {"mask": mask}
        bias = visibility.bias_BNTS
        if bias is not None:  # finite in float16, too
            bias = jnp.broadcast_to(bias, (*bias.shape[:2], T, k.shape[1]))
            options["bias"] = jnp.maximum(bias, jnp.finfo(q.dtype).min).astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, **options, implementation="cudnn")


class Skipping(Attend):
    """What the two of jaxllm's own share: they drop weights and skip blocks that nobody sees.

    A subclass sets `blocks`, tokens of a block of queries and of keys, and has
    `flash(heads, rate)`: (q, k, v, seen, dropping) -> out_BTNH on one device, of `heads` in all.
    """

    flash: Callable[[int, float], Callable[..., jax.Array]]
    blocks: tuple[int, int] | None = None  # None: not for such rows
    general = False

    def __init__(self, visibility: Visibility):
        super().__init__(visibility)
        self.near: Any = None  # what queries see: blocks.BlockRanges
        self.everywhere: Any = None
        if self.blocks is not None and not visibility.sees_all:
            ids = (visibility.q_ids_BT, visibility.k_ids_BS)
            known = [len(x) for x in ids if x is not None]
            ids = row_ids(visibility, max(known, default=1))
            causal, window = visibility.causal, visibility.window
            self.near = block_ranges(*ids, causal, window, self.blocks)
            if window is not None:
                whole = (visibility.queries, visibility.queries)
                self.everywhere = block_ranges(*ids, causal, whole, self.blocks)

    def seen(self, visibility: Visibility, rows: int) -> BlockRanges | None:
        """What queries see in each row; None where that is everything."""
        seen: Any = self.near
        if visibility.is_global is not None and visibility.window is not None:
            pick = partial(jnp.where, visibility.is_global)
            seen = jax.tree.map(pick, self.everywhere, seen)
        return None if seen is None else seen.of_rows(rows)

    def skipping(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        visibility: Visibility,
        rate: float,
        key: Key,
    ) -> jax.Array:
        return self.over_devices(q, k, v, self.seen(visibility, len(q)), rate, key)

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
    """`blocked`: blocks that a CPU's caches hold. Where there are none, it is XLA's.

    So is what a gradient is asked of, where a block holds a whole row.
    """

    name = "blocked"
    general = True

    def __init__(self, visibility: Visibility):
        length = visibility.queries
        self.blocks = blocked.blocks_of(length) if visibility.is_rows else None
        super().__init__(visibility)
        if self.blocks is not None:
            one = length == self.blocks[1]
            self.fused = self.forward_alone if one else self.skipping

    def flash(self, heads: int, rate: float) -> Callable[..., jax.Array]:
        assert self.blocks is not None
        static = blocked.Static(heads, rate, self.blocks)
        return partial(blocked.blocked_attention, static)

    def forward_alone(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        visibility: Visibility,
        rate: float,
        key: Key,
    ) -> jax.Array:
        def slow(q: jax.Array, k: jax.Array, v: jax.Array, what: Any) -> jax.Array:
            return in_xla(q, k, v, what[0], rate, key)[0]

        def fast(q: jax.Array, k: jax.Array, v: jax.Array, what: Any) -> jax.Array:
            return self.over_devices(q, k, v, what[1], 0.0, None)

        call = slow if rate > 0 else differentiated_as(slow, fast)
        return call(q, k, v, (visibility, self.seen(visibility, len(q))))


class Triton(Skipping):
    """`triton`, kernels for NVIDIA GPUs."""

    name = "triton"
    platform = "gpu"

    def __init__(self, visibility: Visibility):
        from jaxllm.attention import triton  # Pallas' Triton may leave jax one day

        self.kernels = triton
        self.block = triton.BLOCK
        if visibility.queries % self.block == 0:
            self.blocks = self.block, self.block
        super().__init__(visibility)

    def fused(self, q: jax.Array, *rest: Any) -> jax.Array:
        H = q.shape[-1]
        self.check_dtype(q.dtype)
        if H not in (16, 32, 64, 128):
            raise self.refusal(f"takes heads of 16, 32, 64 or 128, found {H}")
        if self.blocks is None:
            blocks = f"a multiple of {self.block} tokens"
            raise self.refusal(f"takes rows of {blocks}, found {self.visibility.queries}", ROWS)
        return self.skipping(q, *rest)

    def flash(self, heads: int, rate: float) -> Callable[..., jax.Array]:
        return partial(self.kernels.flash_attention, self.kernels.Static(heads, rate))


class Given(Attend):
    """The caller's function: (q_BTNH, k_BSNH, v_BSNH, visibility, dropout_rate=, key=) -> out_BTNH.

    It has to honour the `Visibility` and the dropout that it is given.
    """

    def __init__(self, visibility: Visibility, function: Callable[..., jax.Array]):
        super().__init__(visibility)
        self.function = function
        self.name = getattr(function, "__name__", repr(function))

    def fused(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        visibility: Visibility,
        rate: float,
        key: Key,
    ) -> jax.Array:
        k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
        out = self.function(q, k, v, visibility, dropout_rate=rate, key=key)
        is_array = isinstance(out, jax.Array | np.ndarray)
        # The imaginary part of a complex array would go, and whole numbers hide a rounding.
        if not is_array or out.shape != q.shape or not jnp.issubdtype(out.dtype, jnp.floating):
            found = f"an array {out.shape}" if is_array else type(out).__name__
            if is_array and out.shape == q.shape:
                found += f" of {out.dtype}"
            raise InputError(
                f"attention: {self.name} gave {found}, expected an array {q.shape} like the "
                f"queries, of {q.dtype}"
            )
        return jnp.asarray(out, q.dtype)


ATTENDS: dict[str, type[Attend]] = {
    "xla": Attend,
    "blocked": Blocked,
    "cudnn": Cudnn,
    "triton": Triton,
    "splash": Splash,
}


def make_attend(
    attention: str | Callable[..., jax.Array], visibility: Visibility, *, weights: bool = False
) -> Attend:
    """The implementation of that name, or the caller's function, see `Attend` and `Given`.

    Raises:
        InputError: there is no such implementation, it cannot honour the visibility, or the
            `weights` are asked for and it has none.
    """
    if callable(attention):
        attend: Attend = Given(visibility, attention)
    elif attention in ATTENDS:
        attend = ATTENDS[attention](visibility)
    else:
        raise InputError(
            f"attention: found {attention!r}, expected one of {', '.join(ATTENDS)}, or a function"
        )
    if weights and attend.fused is not None:
        raise InputError(
            f"output_attentions: {attend.name} attention has no weights to give; use "
            "model.attention: xla"
        )
    return attend


def attention_on(name: str, mesh: Mesh) -> str:
    """The name in ATTENDS that `name`, a value of model.attention, has on the mesh's devices.

    Raises:
        InputError: it does not run there.
    """
    here = mesh.devices.flat[0].platform
    if name == "auto":
        return "blocked" if here == "cpu" else "xla"
    needed = ATTENDS[name].platform
    if needed not in (None, here):
        raise InputError(
            f"model.attention: {name} runs on a {str(needed).upper()}, and JAX found a "
            f"{here.upper()}; set model.attention: auto"
        )
    return name
