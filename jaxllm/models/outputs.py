"""What models return. Attribute names are those of transformers; every class is a pytree.

An output is also the mapping that it is in transformers, of its fields that are not None, in order.
`loss` [], float32, is first, where labels were given. hidden_states: L + 1 arrays [B, T, D],
embeddings first; attentions: L arrays [B, N, T, S]; None unless asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax

from jaxllm.attention.cache import Cache


class Output(Mapping[str, Any]):
    """`out["logits"]`, `out[0]`, `out[:2]`, `keys()`, `to_tuple()`, `"loss" in out`."""

    def __iter__(self) -> Iterator[str]:
        names = (field.name for field in fields(self))  # type: ignore[arg-type]
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class EncoderOutput(Output):
    """last_hidden_state [B, T, D]; pooler_output [B, D] ([B, P, D] with `head_positions`) or
    None; the cache that a decoder was given, with the tokens in it.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cache: Cache | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class HeadOutput(Output):
    """logits: [B, C] or [B, P, C] for classes, [B, T, C] for tokens, [B, T, V] or [B, P, V] for a
    masked or causal LM; what else they are, each head says. cache: see `EncoderOutput`.
    """

    loss: jax.Array | None = field(default=None, kw_only=True)
    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    cache: Cache | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SpanOutput(Output):
    """start_logits, end_logits [B, T]."""

    loss: jax.Array | None = field(default=None, kw_only=True)
    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PretrainingOutput(Output):
    """prediction_logits [B, T, V] or [B, P, V]; seq_relationship_logits [B, 2] or [B, Q, 2]."""

    loss: jax.Array | None = field(default=None, kw_only=True)
    prediction_logits: jax.Array
    seq_relationship_logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ReplacedTokenOutput(Output):
    """prediction_logits [B, P, V] of the generator, logits [B, T] of the discriminator, and which
    tokens it saw that are not the original ones: is_replaced, bool [B, T].
    """

    prediction_logits: jax.Array
    logits: jax.Array
    is_replaced: jax.Array
