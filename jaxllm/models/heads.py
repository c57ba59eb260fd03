"""Heads of encoders: a class for each task, shared by the families whose mathematics is the same.

A head is called with the stack that it ends and its `tokens`: ids [B, T], or embeddings [B, T, E]
in their place. Heads for sequences look at one token of each example:
the first of the row, or, in packed rows, those at `head_positions` [B, P], with logits for each.
Heads for tokens look at all of them and have no use for `head_positions`. Logits are float32, those
of a vocabulary in the model's dtype.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.models.blocks import Stack, gather_tokens
from jaxllm.models.outputs import EncoderOutput, HeadOutput, SpanOutput
from jaxllm.models.spec import EncoderSpec, Layers
from jaxllm.nn.layers import ACTIVATIONS, Embed, Key, add_bias, dropout, is_embedded, split_key


class Spec(Protocol):
    """What shared heads need to know of a model."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_labels(self) -> int: ...


class Bare(nnx.Module):
    """No head: the last hidden state."""

    def __init__(self, spec: Spec, layers: Layers):
        pass

    def __call__(
        self,
        stack: Stack,
        tokens: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        **inputs: Any,
    ) -> EncoderOutput:
        return stack.encode(tokens, **inputs)


class Pooler(nnx.Module):
    """A dense layer and an activation for the tokens that stand for examples."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.pooler = layers.dense(spec.hidden_size, spec.hidden_size)
        self.pooler_act = ACTIVATIONS[spec.pooler_act]

    def pool(self, x: jax.Array) -> jax.Array:
        return self.pooler_act(self.pooler(x))


class Pooled(Pooler):
    """The last hidden state, and the pooled first token or those at `head_positions` [B, P]."""

    def __call__(
        self,
        stack: Stack,
        tokens: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        **inputs: Any,
    ) -> EncoderOutput:
        out = stack.encode(tokens, **inputs)
        x_BTD = out.last_hidden_state
        first = x_BTD[:, 0] if head_positions is None else gather_tokens(x_BTD, head_positions)
        return replace(out, pooler_output=self.pool(first))


class SequenceHead(nnx.Module):
    """What heads for sequences share; a head is its `scores`."""

    @abstractmethod
    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        """Logits [B, P, C] of P examples, each a vector."""

    def vectors(
        self, stack: Stack, tokens: jax.Array, positions_BP: jax.Array, **inputs: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """([B, P, D]: a vector for each example that begins at a position, the stack's output)."""
        return stack.encode_at(tokens, positions_BP, **inputs)

    def firsts(self, tokens: jax.Array, inputs: dict[str, Any]) -> jax.Array:
        """Positions [B, 1] of the token that stands for each row."""
        return jnp.zeros((tokens.shape[0], 1), jnp.int32)

    def __call__(
        self,
        stack: Stack,
        tokens: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> HeadOutput:
        stack_key, head_key = split_key(key, 2)
        positions = self.firsts(tokens, inputs) if head_positions is None else head_positions
        x_BPD, out = self.vectors(stack, tokens, positions, key=stack_key, **inputs)
        logits = self.scores(x_BPD, head_key).astype(jnp.float32)
        if head_positions is None:
            logits = logits[:, 0]
        return HeadOutput(logits, out.hidden_states, out.attentions)


class PooledClassification(SequenceHead, Pooler):
    """Pooler, dropout, a linear layer: logits [B, C] or [B, P, C]."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        super().__init__(spec, layers)
        self.classifier = layers.dense(spec.hidden_size, spec.num_labels)
        self.dropout_rate = spec.classifier_dropout

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.classifier(dropout(self.pool(x_BPD), self.dropout_rate, key))


class ClassificationLayers(nnx.Module):
    """Dropout, dense, activation, dropout, linear."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.dense = layers.dense(spec.hidden_size, spec.hidden_size)
        self.output = layers.dense(spec.hidden_size, spec.num_labels)
        self.activation = ACTIVATIONS[spec.classifier_act]
        self.dropout_rate = spec.classifier_dropout

    def __call__(self, x: jax.Array, key: Key) -> jax.Array:
        first_key, second_key = split_key(key, 2)
        x = self.activation(self.dense(dropout(x, self.dropout_rate, first_key)))
        return self.output(dropout(x, self.dropout_rate, second_key))


class Classification(SequenceHead):
    """Two layers of its own, beside any pooler: logits [B, C] or [B, P, C]."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.classification = ClassificationLayers(spec, layers)

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.classification(x_BPD, key)


class Choices(nnx.Module):
    """Beside a head for sequences that has one logit: scores [B, C] for ids [B, C, T], [B, P] for
    packed choices [B, T] at `head_positions`, [B] for a choice a row.
    """

    def __call__(self, stack: Stack, tokens: jax.Array, **inputs: Any) -> HeadOutput:
        head = partial(super().__call__, stack)
        choices = tokens.shape[:2] if tokens.ndim - is_embedded(tokens) == 3 else None
        if choices is not None:
            tokens, inputs = jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]) if jnp.ndim(x) > 2 else x, (tokens, inputs)
            )
        out = head(tokens, **inputs)
        scores = out.logits[..., 0]
        return replace(out, logits=scores if choices is None else scores.reshape(choices))


class MultipleChoice(Choices, PooledClassification):
    """A score for each choice: pooler, dropout, a linear layer."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        rate = spec.choice_dropout
        super().__init__(replace(spec, num_labels=1, classifier_dropout=rate), layers)


class TokenHead(nnx.Module):
    """What heads for tokens share: logits [B, T, C]; a head is its `scores`."""

    @abstractmethod
    def scores(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        """Logits [B, T, C] of the last hidden state."""

    def __call__(
        self,
        stack: Stack,
        tokens: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> Any:  # a HeadOutput
        stack_key, head_key = split_key(key, 2)
        out = stack.encode(tokens, key=stack_key, **inputs)
        logits = self.scores(out.last_hidden_state, head_key).astype(jnp.float32)
        return HeadOutput(logits, out.hidden_states, out.attentions)


class TokenClassification(TokenHead):
    """Dropout and a linear layer on every token: logits [B, T, C]."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.classifier = layers.dense(spec.hidden_size, spec.num_labels)
        self.dropout_rate = spec.token_dropout

    def scores(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        return self.classifier(dropout(x_BTD, self.dropout_rate, key))


class Spans(nnx.Module):
    """Beside a head for tokens that has two logits: start_logits and end_logits [B, T]."""

    def __call__(self, stack: Stack, tokens: jax.Array, **inputs: Any) -> SpanOutput:
        out = super().__call__(stack, tokens, **inputs)
        start, end = out.logits[..., 0], out.logits[..., 1]
        return SpanOutput(start, end, out.hidden_states, out.attentions)


def check_two_labels(spec: Spec) -> None:
    if spec.num_labels != 2:
        raise InputError(
            f"question answering has a start and an end score, the config has "
            f"num_labels={spec.num_labels}; load it with num_labels=2"
        )


class QuestionAnswering(Spans, TokenHead):
    """Dropout and a linear layer on every token."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        check_two_labels(spec)
        self.qa_outputs = layers.dense(spec.hidden_size, 2)
        self.dropout_rate = spec.span_dropout

    def scores(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        return self.qa_outputs(dropout(x_BTD, self.dropout_rate, key))


class VocabularyHead(nnx.Module):
    """What masked and causal LMs share: logits [B, T, V], or [B, P, V] at `head_positions` only.

    With `judge` the output is what it makes of three arguments: a pure function `f(params, x [...,
    D]) -> logits [..., V]`, its params and the last hidden state. So a loss need not have all
    logits at once.
    """

    is_tied = True  # whether `scores` looks at the word embedding

    @abstractmethod
    def scores(self, x: jax.Array, word: Embed) -> jax.Array:
        """Logits [..., V] of the last hidden state; `word`: the embedding that is tied."""

    def __call__(
        self,
        stack: Any,
        tokens: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        judge: Callable[..., Any] | None = None,
        **inputs: Any,
    ) -> Any:
        x, out = stack.encode_at(tokens, head_positions, **inputs)
        if judge is not None:
            parts = {"head": self, **({"word": stack.embeddings.word} if self.is_tied else {})}
            graphdef, params = nnx.split(parts)

            def scores(params: Any, x: jax.Array) -> jax.Array:
                parts = nnx.merge(graphdef, params)
                return parts["head"].scores(x, parts.get("word"))

            return judge(scores, params, x)
        logits = self.scores(x, stack.embeddings.word)
        return HeadOutput(logits, out.hidden_states, out.attentions, out.cache)


class MLMLayers(nnx.Module):
    """Dense, activation, LayerNorm; then the word embedding, transposed, and a bias of its own."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.dense = layers.dense(spec.hidden_size, spec.embedding_size)
        self.norm = layers.norm(spec.embedding_size)
        self.bias = nnx.Param(jnp.zeros((spec.vocab_size,), jnp.float32))
        self.activation = ACTIVATIONS[spec.mlm_act]

    def __call__(self, x: jax.Array, word: Embed) -> jax.Array:
        logits = word.attend(self.norm(self.activation(self.dense(x))))
        return add_bias(logits, self.bias[...].astype(logits.dtype))


class MaskedLM(VocabularyHead):
    """BERT's. Of a decoder (`CausalLM`) the same layers tell the next token."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.mlm = MLMLayers(spec, layers)

    def scores(self, x: jax.Array, word: Embed) -> jax.Array:
        return self.mlm(x, word)


class CausalLM(MaskedLM):
    """The next token, of an encoder whose tokens see none behind them."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        if not spec.is_decoder:
            raise InputError(
                "the config has is_decoder=False, with which a token sees those behind it; load a "
                "causal LM with is_decoder=True"
            )
        super().__init__(spec, layers)
