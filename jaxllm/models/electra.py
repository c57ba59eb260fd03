"""ELECTRA (Clark et al., 2020): a generator that fills masks, a discriminator that finds them out.

Both are BERT encoders whose embeddings may be narrower than their blocks. "masked-lm" is the
generator, "pretraining" the discriminator; where they are trained together they share
`embeddings/word` and the other embeddings. Equal in numbers to transformers' PyTorch classes.
`config` is a transformers ElectraConfig.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers import ACTIVATIONS
from jaxllm.models import heads
from jaxllm.models.outputs import HeadOutput
from jaxllm.models.spec import EncoderSpec, dense, head_dropout


def spec(config: Any, **options: Any) -> EncoderSpec:
    rate = head_dropout(config)
    return EncoderSpec.of(
        config,
        embedding_size=config.embedding_size,
        classifier_dropout=rate,
        token_dropout=rate,
        choice_dropout=config.summary_last_dropout,
        mlm_act="gelu",
        pooler_act=config.summary_activation,
        classifier_act="gelu",
        **options,
    )


class DiscriminatorLayers(nnx.Module):
    """Dense, activation, one score."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        self.dense = dense(spec, rngs, spec.hidden_size, spec.hidden_size)
        self.output = dense(spec, rngs, spec.hidden_size, 1)
        self.activation = ACTIVATIONS[spec.hidden_act]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.activation(self.dense(x)))


class Discriminator(heads.TokenHead):
    """Replaced-token detection: logits [B, T], positive where a token is not the original one."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.discriminator = DiscriminatorLayers(spec, rngs)

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> HeadOutput:
        x_BTD, out = self.tokens(input_ids, 0.0, **inputs)
        logits = self.discriminator(x_BTD)[..., 0].astype(jnp.float32)
        return HeadOutput(logits, out.hidden_states, out.attentions)


HEADS = {
    "base": heads.Model,
    "masked-lm": heads.MaskedLM,
    "pretraining": Discriminator,
    "sequence-classification": heads.Classification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
    "multiple-choice": heads.MultipleChoice,
}
