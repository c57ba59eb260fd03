"""What all stacks share: blocks on a leading axis, scanned, and the last state at some tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.compute import Compute
from jaxllm.models.outputs import EncoderOutput

REMAT_POLICIES = {
    "full": None,  # keep the block's input only
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the matrix products
}
# f(x_BTD, one block's layers, queries [B, P] or None) -> (x_BTD or x_BPD, attention weights)
Block = Callable[[jax.Array, Any, jax.Array | None], tuple[jax.Array, jax.Array | None]]


class Stack(nnx.Module):
    """Embeddings and blocks. The last block can be computed at some tokens only."""

    encode: Callable[..., EncoderOutput]  # `queries` are the last block's tokens

    def encode_at(
        self, tokens: jax.Array, positions: jax.Array | None, **inputs: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """(last hidden state of the tokens at `positions` [B, P, D], the encoder's output).

        Where hidden states or attentions are asked for, they are those of all tokens. `positions`
        None: all tokens.
        """
        if (
            positions is None
            or inputs.get("output_hidden_states")
            or inputs.get("output_attentions")
        ):
            out = self.encode(tokens, **inputs)
            x = out.last_hidden_state
            return (x if positions is None else gather_tokens(x, positions)), out
        out = self.encode(tokens, queries=positions, **inputs)
        return out.last_hidden_state, out


def scan_blocks(
    block: Block,
    x_BTD: jax.Array,
    layers: Any,
    queries: jax.Array | None,
    compute: Compute,
    *,
    hidden_states: bool,
    attentions: bool,
) -> EncoderOutput:
    """`block` over `layers`, a tree of arrays with a leading L axis.

    `queries` [B, P]: the last block computes these tokens only.
    """

    def body(x_BTD: jax.Array, layer: Any, queries: jax.Array | None = None) -> tuple:
        x_BTD, weights = block(x_BTD, layer, queries)
        return x_BTD, (x_BTD if hidden_states else None, weights if attentions else None)

    if compute.remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[compute.remat])
    embedded, last = x_BTD, None
    if queries is not None:
        last = jax.tree.map(lambda a: a[-1], layers)
        layers = jax.tree.map(lambda a: a[:-1], layers)
    unroll: int | bool = compute.unroll or True  # True: all
    collected: tuple
    x_BTD, collected = jax.lax.scan(body, x_BTD, layers, unroll=unroll)
    if last is not None:
        x_BTD, _ = body(x_BTD, last, queries)
    hidden, weights = collected
    return EncoderOutput(
        last_hidden_state=x_BTD,
        hidden_states=(embedded, *hidden) if hidden_states else None,
        attentions=tuple(weights) if attentions else None,
    )


def gather_tokens(x_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """x_BPD: the tokens of each row at the given positions."""
    return jnp.take_along_axis(x_BTD, positions_BP[:, :, None], axis=1)
