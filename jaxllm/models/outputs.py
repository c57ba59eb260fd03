"""What models return. Attribute names are those of transformers; every class is a pytree.

hidden_states: L + 1 arrays [B, T, D], embeddings first; attentions: L arrays [B, N, T, S]; None
unless asked for.
"""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncoderOutput:
    """last_hidden_state [B, T, D]; pooler_output [B, D] ([B, P, D] with `head_positions`) or
    None.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadOutput:
    """logits: [B, C] or [B, P, C] for classes, [B, T, C] for tokens, [B, T, V] or [B, P, V] for a
    masked LM; what else they are, each head says.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpanOutput:
    """start_logits, end_logits [B, T]."""

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PretrainingOutput:
    """prediction_logits [B, T, V] or [B, P, V]; seq_relationship_logits [B, 2] or [B, Q, 2]."""

    prediction_logits: jax.Array
    seq_relationship_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReplacedTokenOutput:
    """prediction_logits [B, P, V] of the generator, logits [B, T] of the discriminator, and which
    tokens it saw that are not the original ones: is_replaced, bool [B, T].
    """

    prediction_logits: jax.Array
    logits: jax.Array
    is_replaced: jax.Array
