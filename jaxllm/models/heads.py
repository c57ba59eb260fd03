"""Heads of encoders: a class for each task, shared by the families whose mathematics is the same.

Heads for sequences look at one token of each example: the first of the row, or, in packed rows,
those at `head_positions` [B, P], with logits for each. Heads for tokens look at all of them and
have no use for `head_positions`. Logits are float32, those of a vocabulary in the model's dtype.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS, Embed, Key, add_bias, dropout, split_key
from jaxllm.models.blocks import gather_tokens
from jaxllm.models.encoder import Encoder
from jaxllm.models.outputs import EncoderOutput, HeadOutput, SpanOutput
from jaxllm.models.spec import EncoderSpec, dense, layer_norm


class Model(Encoder):
    """The bare model of a family without a pooler: the last hidden state."""

    def __call__(
        self, input_ids: jax.Array, *, head_positions: jax.Array | None = None, **inputs: Any
    ) -> EncoderOutput:
        return self.encode(input_ids, **inputs)


class PooledEncoder(Encoder):
    """An encoder with a dense layer and an activation for the tokens that stand for examples."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.pooler = dense(spec, rngs, spec.hidden_size, spec.hidden_size)

    def pool(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.spec.pooler_act](self.pooler(x))


class PooledModel(PooledEncoder):
    """The bare model: last hidden state, and the pooled first token or `head_positions` [B, P]."""

    def __call__(
        self, input_ids: jax.Array, *, head_positions: jax.Array | None = None, **inputs: Any
    ) -> EncoderOutput:
        out = self.encode(input_ids, **inputs)
        x_BTD = out.last_hidden_state
        first = x_BTD[:, 0] if head_positions is None else gather_tokens(x_BTD, head_positions)
        return replace(out, pooler_output=self.pool(first))


class SequenceHead(Encoder):
    """What heads for sequences share; a head is its `scores`."""

    @abstractmethod
    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        """Logits [B, P, C] of P tokens' last hidden state."""

    def __call__(
        self,
        input_ids: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> HeadOutput:
        encoder_key, head_key = split_key(key, 2)
        positions = first_tokens(input_ids) if head_positions is None else head_positions
        x_BPD, out = self.encode_at(input_ids, positions, key=encoder_key, **inputs)
        logits = self.scores(x_BPD, head_key).astype(jnp.float32)
        if head_positions is None:
            logits = logits[:, 0]
        return HeadOutput(logits, out.hidden_states, out.attentions)


class PooledClassification(SequenceHead, PooledEncoder):
    """Pooler, dropout, a linear layer: logits [B, C] or [B, P, C]."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.classifier = dense(spec, rngs, spec.hidden_size, spec.num_labels)

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.classifier(dropout(self.pool(x_BPD), self.spec.classifier_dropout, key))


class ClassificationLayers(nnx.Module):
    """Dropout, dense, activation, dropout, linear."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        self.dense = dense(spec, rngs, spec.hidden_size, spec.hidden_size)
        self.output = dense(spec, rngs, spec.hidden_size, spec.num_labels)
        self.activation = ACTIVATIONS[spec.classifier_act]
        self.dropout_rate = spec.classifier_dropout

    def __call__(self, x: jax.Array, key: Key) -> jax.Array:
        first_key, second_key = split_key(key, 2)
        x = self.activation(self.dense(dropout(x, self.dropout_rate, first_key)))
        return self.output(dropout(x, self.dropout_rate, second_key))


class Classification(SequenceHead):
    """Two layers of its own, beside any pooler: logits [B, C] or [B, P, C]."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.classification = ClassificationLayers(spec, rngs)

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.classification(x_BPD, key)


class MultipleChoice(SequenceHead, PooledEncoder):
    """A score for each choice: logits [B, C] for ids [B, C, T], [B, P] for packed choices [B, T]
    at `head_positions`, [B] for a choice a row.
    """

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.classifier = dense(spec, rngs, spec.hidden_size, 1)

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.classifier(dropout(self.pool(x_BPD), self.spec.choice_dropout, key))

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> HeadOutput:
        return score_choices(super().__call__, input_ids, inputs)


def score_choices(
    head: Callable[..., HeadOutput], input_ids: jax.Array, inputs: dict[str, Any]
) -> HeadOutput:
    """Scores [B, C] for ids [B, C, T], [B, P] or [B] for [B, T], by a head with one logit."""
    choices = input_ids.shape[:2] if input_ids.ndim == 3 else None
    if choices is not None:
        input_ids, inputs = jax.tree.map(
            lambda x: x.reshape(-1, x.shape[-1]) if jnp.ndim(x) == 3 else x, (input_ids, inputs)
        )
    out = head(input_ids, **inputs)
    scores = out.logits[..., 0]
    return replace(out, logits=scores if choices is None else scores.reshape(choices))


class TokenHead(Encoder):
    """What heads for tokens share: (encoder's output, its last hidden state after dropout)."""

    def tokens(
        self,
        input_ids: jax.Array,
        rate: float,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> tuple[jax.Array, EncoderOutput]:
        encoder_key, head_key = split_key(key, 2)
        out = self.encode(input_ids, key=encoder_key, **inputs)
        return dropout(out.last_hidden_state, rate, head_key), out


class TokenClassification(TokenHead):
    """Dropout and a linear layer on every token: logits [B, T, C]."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.classifier = dense(spec, rngs, spec.hidden_size, spec.num_labels)

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> HeadOutput:
        x_BTD, out = self.tokens(input_ids, self.spec.token_dropout, **inputs)
        logits = self.classifier(x_BTD).astype(jnp.float32)
        return HeadOutput(logits, out.hidden_states, out.attentions)


class QuestionAnswering(TokenHead):
    """Start and end scores of every token: start_logits and end_logits [B, T]."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        if spec.num_labels != 2:
            raise InputError(
                f"question answering has a start and an end score, the config has "
                f"num_labels={spec.num_labels}; load it with num_labels=2"
            )
        self.qa_outputs = dense(spec, rngs, spec.hidden_size, 2)

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> SpanOutput:
        x_BTD, out = self.tokens(input_ids, self.spec.span_dropout, **inputs)
        scores = self.qa_outputs(x_BTD).astype(jnp.float32)
        return SpanOutput(scores[..., 0], scores[..., 1], out.hidden_states, out.attentions)


class MLMLayers(nnx.Module):
    """Dense, activation, LayerNorm; then the word embedding, transposed, and a bias of its own."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        self.dense = dense(spec, rngs, spec.hidden_size, spec.embedding_size)
        self.norm = layer_norm(spec, spec.embedding_size)
        self.bias = nnx.Param(jnp.zeros((spec.vocab_size,), jnp.float32))
        self.activation = ACTIVATIONS[spec.mlm_act]

    def __call__(self, x: jax.Array, word: Embed) -> jax.Array:
        logits = word.attend(self.norm(self.activation(self.dense(x))))
        return add_bias(logits, self.bias[...].astype(logits.dtype))


class MaskedLM(Encoder):
    """Logits [B, T, V], or [B, P, V] at `head_positions` only."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.mlm = MLMLayers(spec, rngs)

    def __call__(
        self, input_ids: jax.Array, *, head_positions: jax.Array | None = None, **inputs: Any
    ) -> HeadOutput:
        x, out = self.encode_at(input_ids, head_positions, **inputs)
        return HeadOutput(self.mlm(x, self.embeddings.word), out.hidden_states, out.attentions)


def first_tokens(input_ids: jax.Array) -> jax.Array:
    """Positions [B, 1] of the first token of each row."""
    return jnp.zeros((input_ids.shape[0], 1), jnp.int32)
