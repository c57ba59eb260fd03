"""What models return. Attribute names are those of transformers; every class is a pytree."""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderOutput:
    """last_hidden_state [B, T, D]; pooler_output [B, D] ([B, P, D] with `head_positions`) or None.

    hidden_states: L + 1 arrays [B, T, D], embeddings first; attentions: L arrays [B, N, T, S]; None
    unless asked for.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadOutput:
    """logits: [B, C] or [B, P, C] for classes, [B, T, V] or [B, P, V] for a masked LM."""

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpanOutput:
    """start_logits and end_logits [B, T]: how well each token begins and ends the answer."""

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
