"""ModernBERT's heads (those that transformers has), equal in numbers to its PyTorch classes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS, Key, add_bias, dropout, split_key
from jaxllm.models.heads import score_choices
from jaxllm.models.modernbert import ModernBertEncoder, make_dense, make_norm, output_stddev
from jaxllm.models.outputs import EncoderOutput, HeadOutput, SpanOutput


class ModernBertModel(ModernBertEncoder):
    """The bare model: the last hidden state. There is no pooler."""

    def __call__(
        self, input_ids: jax.Array, *, head_positions: jax.Array | None = None, **inputs: Any
    ) -> EncoderOutput:
        return self.encode(input_ids, **inputs)


class ModernBertHead(nnx.Module):
    """Dense, activation, norm: what every head begins with."""

    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D = config.hidden_size
        dense = make_dense(config, use_bias=config.classifier_bias, dtype=dtype, rngs=rngs)
        self.dense = dense((D,), (D,), stddev=output_stddev(config))
        self.norm = make_norm(config, dtype)
        self.activation = ACTIVATIONS[config.classifier_activation]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.activation(self.dense(x)))


class ModernBertDecoderBias(nnx.Module):
    def __init__(self, size: int):
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))


class ModernBertForMaskedLM(ModernBertEncoder):
    """The head, the word embedding, transposed, and a bias: logits [B, T, V], or [B, P, V] at
    `head_positions` only.
    """

    def __init__(
        self, config: Any, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **encoder_options: Any
    ):
        super().__init__(config, dtype=dtype, rngs=rngs, **encoder_options)
        self.head = ModernBertHead(config, dtype=dtype, rngs=rngs)
        self.decoder = ModernBertDecoderBias(config.vocab_size) if config.decoder_bias else None

    def __call__(
        self, input_ids: jax.Array, *, head_positions: jax.Array | None = None, **inputs: Any
    ) -> HeadOutput:
        x, out = self.encode_at(input_ids, head_positions, **inputs)
        logits = self.embeddings.word.attend(self.head(x))
        if self.decoder is not None:
            logits = add_bias(logits, self.decoder.bias[...].astype(logits.dtype))
        return HeadOutput(logits, out.hidden_states, out.attentions)


class ModernBertClassifier(ModernBertEncoder):
    """What the classifiers below share: the head, dropout and a linear layer."""

    def __init__(
        self, config: Any, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **encoder_options: Any
    ):
        super().__init__(config, dtype=dtype, rngs=rngs, **encoder_options)
        D = config.hidden_size
        self.head = ModernBertHead(config, dtype=dtype, rngs=rngs)
        dense = make_dense(config, dtype=dtype, rngs=rngs)
        self.classifier = dense((D,), (self.outputs(config),), stddev=D**-0.5)
        self.dropout_rate = config.classifier_dropout
        self.pooling = config.classifier_pooling

    def outputs(self, config: Any) -> int:
        return config.num_labels

    def classify(self, x: jax.Array, key: Key) -> jax.Array:
        logits = self.classifier(dropout(self.head(x), self.dropout_rate, key))
        return logits.astype(jnp.float32)

    def pool(
        self, input_ids: jax.Array, head_positions: jax.Array, **inputs: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """[B, P, D]: for each segment that begins at `head_positions`, its first token or its mean,
        as config.classifier_pooling has it.
        """
        if self.pooling == "cls":
            return self.encode_at(input_ids, head_positions, **inputs)
        out = self.encode(input_ids, **inputs)
        member_BPT = jnp.ones((*head_positions.shape, input_ids.shape[1]), bool)
        segments, mask = inputs.get("segment_ids"), inputs.get("attention_mask")
        if segments is not None:
            own = jnp.take_along_axis(segments, head_positions, axis=1)
            member_BPT = own[:, :, None] == segments[:, None]
        if mask is not None:
            member_BPT &= (mask != 0)[:, None]
        x_BTD = out.last_hidden_state.astype(jnp.float32)
        sum_BPD = jnp.einsum("BPT,BTD->BPD", member_BPT.astype(jnp.float32), x_BTD)
        return sum_BPD / jnp.maximum(member_BPT.sum(-1, keepdims=True), 1), out


class ModernBertForSequenceClassification(ModernBertClassifier):
    """Logits [B, C], or [B, P, C] for the segments that begin at `head_positions`."""

    def __call__(
        self,
        input_ids: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> HeadOutput:
        encoder_key, head_key = split_key(key, 2)
        first = first_tokens(input_ids, inputs) if head_positions is None else head_positions
        x_BPD, out = self.pool(input_ids, first, key=encoder_key, **inputs)
        x = x_BPD[:, 0] if head_positions is None else x_BPD
        return HeadOutput(self.classify(x, head_key), out.hidden_states, out.attentions)


class ModernBertForMultipleChoice(ModernBertForSequenceClassification):
    """A score for each choice: ids [B, C, T] give logits [B, C]; rows in which each segment is a
    choice give [B, P].
    """

    def outputs(self, config: Any) -> int:
        return 1

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> HeadOutput:
        return score_choices(super().__call__, input_ids, inputs)


class ModernBertForTokenClassification(ModernBertClassifier):
    """Logits [B, T, C]: of all tokens, whatever `head_positions`."""

    def __call__(
        self,
        input_ids: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> HeadOutput:
        encoder_key, head_key = split_key(key, 2)
        out = self.encode(input_ids, key=encoder_key, **inputs)
        logits = self.classify(out.last_hidden_state, head_key)
        return HeadOutput(logits, out.hidden_states, out.attentions)


class ModernBertForQuestionAnswering(ModernBertForTokenClassification):
    """Start and end logits [B, T]: the two classes of each token."""

    def outputs(self, config: Any) -> int:
        if config.num_labels != 2:
            raise InputError(
                f"question answering has a start and an end score, the config has "
                f"num_labels={config.num_labels}; load it with num_labels=2"
            )
        return 2

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> SpanOutput:  # type: ignore[override]
        out = super().__call__(input_ids, **inputs)
        start, end = out.logits[..., 0], out.logits[..., 1]
        return SpanOutput(start, end, out.hidden_states, out.attentions)


def first_tokens(input_ids: jax.Array, inputs: dict[str, Any]) -> jax.Array:
    """[B, 1]: where each row's first token stands that is no padding."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return jnp.zeros((input_ids.shape[0], 1), jnp.int32)
    return jnp.argmax(mask != 0, axis=1, keepdims=True)


HEADS = {
    "base": ModernBertModel,
    "masked-lm": ModernBertForMaskedLM,
    "sequence-classification": ModernBertForSequenceClassification,
    "token-classification": ModernBertForTokenClassification,
    "question-answering": ModernBertForQuestionAnswering,
    "multiple-choice": ModernBertForMultipleChoice,
}
