"""ModernBERT's heads (those that transformers has), equal in numbers to its PyTorch classes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.models import heads
from jaxllm.models.blocks import Stack
from jaxllm.models.family import Family
from jaxllm.models.modernbert import ModernBertEncoder, ModernBertSpec, spec, windows
from jaxllm.models.outputs import EncoderOutput
from jaxllm.models.spec import Layers
from jaxllm.names.modernbert import MODERNBERT
from jaxllm.nn.layers import ACTIVATIONS, Embed, Key, add_bias, dropout


class Transform(nnx.Module):
    """Dense, activation, norm: what every head begins with."""

    def __init__(self, spec: ModernBertSpec, layers: Layers):
        D = spec.hidden_size
        bias, stddev = spec.classifier_bias, spec.output_stddev
        self.dense = layers.dense(D, D, use_bias=bias, stddev=stddev)
        self.norm = layers.norm(D)
        self.activation = ACTIVATIONS[spec.classifier_activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.activation(self.dense(x)))


class DecoderBias(nnx.Module):
    def __init__(self, size: int):
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))


class MaskedLM(heads.VocabularyHead):
    """The transform, the word embedding, transposed, and a bias."""

    def __init__(self, spec: ModernBertSpec, layers: Layers):
        self.head = Transform(spec, layers)
        self.decoder = DecoderBias(spec.vocab_size) if spec.decoder_bias else None

    def scores(self, x: jax.Array, word: Embed) -> jax.Array:
        logits = word.attend(self.head(x))
        if self.decoder is None:
            return logits
        return add_bias(logits, self.decoder.bias[...].astype(logits.dtype))


class Classifier(nnx.Module):
    """The transform, dropout and a linear layer."""

    def __init__(self, spec: ModernBertSpec, layers: Layers):
        D = spec.hidden_size
        self.head = Transform(spec, layers)
        self.classifier = layers.dense(D, self.outputs(spec), stddev=D**-0.5)
        self.dropout_rate = spec.classifier_dropout
        self.pooling = spec.classifier_pooling

    def outputs(self, spec: ModernBertSpec) -> int:
        return spec.num_labels

    def scores(self, x: jax.Array, key: Key) -> jax.Array:
        return self.classifier(dropout(self.head(x), self.dropout_rate, key))


class SequenceClassification(Classifier, heads.SequenceHead):
    """Logits [B, C], or [B, P, C] for the segments that begin at `head_positions`."""

    def vectors(
        self, stack: Stack, tokens: jax.Array, positions_BP: jax.Array, **inputs: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """[B, P, D]: of each segment its first token or its mean, as config.classifier_pooling has
        it.
        """
        if self.pooling == "cls":
            return stack.encode_at(tokens, positions_BP, **inputs)
        out = stack.encode(tokens, **inputs)
        member_BPT = jnp.ones((*positions_BP.shape, tokens.shape[1]), bool)
        segments, mask = inputs.get("segment_ids"), inputs.get("attention_mask")
        if mask is not None and mask.ndim > 2:
            raise InputError(
                f"attention_mask: found {mask.ndim} axes, which do not say what is padding, and a "
                "mean over the tokens of a row leaves padding out; give [rows, tokens], or load "
                'the model with classifier_pooling="cls"'
            )
        if segments is not None:
            own = jnp.take_along_axis(segments, positions_BP, axis=1)
            member_BPT = own[:, :, None] == segments[:, None]
        if mask is not None:
            member_BPT &= (mask != 0)[:, None]
        x_BTD = out.last_hidden_state.astype(jnp.float32)
        sum_BPD = jnp.einsum("BPT,BTD->BPD", member_BPT.astype(jnp.float32), x_BTD)
        return sum_BPD / jnp.maximum(member_BPT.sum(-1, keepdims=True), 1), out

    def firsts(self, tokens: jax.Array, inputs: dict[str, Any]) -> jax.Array:
        """[B, 1]: where each row's first token stands that is no padding."""
        mask = inputs.get("attention_mask")
        if mask is None or mask.ndim > 2:
            return super().firsts(tokens, inputs)
        return jnp.argmax(mask != 0, axis=1, keepdims=True).astype(jnp.int32)


class MultipleChoice(heads.Choices, SequenceClassification):
    """A score for each choice."""

    def outputs(self, spec: ModernBertSpec) -> int:
        return 1


class TokenClassification(Classifier, heads.TokenHead):
    """Logits [B, T, C]: of all tokens, whatever `head_positions`."""


class QuestionAnswering(heads.Spans, TokenClassification):
    """Start and end logits [B, T]: the two classes of each token."""

    def outputs(self, spec: ModernBertSpec) -> int:
        heads.check_two_labels(spec)
        return 2


HEADS = {
    "base": heads.Bare,
    "masked-lm": MaskedLM,
    "sequence-classification": SequenceClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
}
FAMILY = Family(
    spec,
    ModernBertEncoder,
    HEADS,
    max_tokens=lambda config: config.max_position_embeddings,
    windows=windows,
    ids={"input_ids": "vocab_size"},
    table=MODERNBERT,
)
