"""ELECTRA (Clark et al., 2020): a generator that fills masks, a discriminator that finds them out.

Both are BERT encoders whose embeddings may be narrower than their blocks. "masked-lm" is the
generator, "pretraining" the discriminator; where they are trained together they share
`embeddings/word` and the other embeddings. Equal in numbers to transformers' PyTorch classes.
`config` is a transformers ElectraConfig.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS, Key, split_key
from jaxllm.models import heads
from jaxllm.models.outputs import HeadOutput, ReplacedTokenOutput
from jaxllm.models.spec import EncoderSpec, dense, head_dropout

_GENERATOR_SHARE = 4


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


class Joint(Discriminator):
    """Generator and discriminator as they are trained: the embeddings are one (section 3.2).

    The generator has a quarter of the width and of the heads, as the paper's small and large ones.
    The discriminator sees its samples in the place of masks, and no gradient goes through them.
    """

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        if spec.num_attention_heads % _GENERATOR_SHARE:
            raise InputError(
                f"model.config: num_attention_heads={spec.num_attention_heads} cannot be divided "
                f"by {_GENERATOR_SHARE} for the generator; choose 4, 8, 12 or 16"
            )
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads")
        smaller = {name: getattr(spec, name) // _GENERATOR_SHARE for name in sizes}
        self.generator = heads.MaskedLM(replace(spec, **smaller), rngs)
        for table in ("word", "position", "token_type", "norm"):
            setattr(self.generator.embeddings, table, getattr(self.embeddings, table))

    def __call__(  # type: ignore[override]
        self,
        input_ids: jax.Array,
        *,
        labels: jax.Array,
        label_weights: jax.Array,
        head_positions: jax.Array,
        key: Key = None,
        **inputs: Any,
    ) -> ReplacedTokenOutput:
        """`labels` [B, P] are the tokens behind the masks, where `label_weights` is not 0."""
        generator_key, discriminator_key, sample_key = split_key(key, 3)
        generated = self.generator(
            input_ids, head_positions=head_positions, key=generator_key, **inputs
        )
        if sample_key is None:  # evaluation draws, too: always the same
            sample_key = jax.random.key(0)
        logits_BPV = jax.lax.stop_gradient(generated.logits).astype(jnp.float32)
        samples_BP = jax.random.categorical(sample_key, logits_BPV)
        # A slot without a mask writes behind the row's end, which is nowhere.
        slots_BP = jnp.where(label_weights > 0, head_positions, input_ids.shape[1])
        rows_B1 = jnp.arange(len(input_ids))[:, None]
        original = input_ids.at[rows_B1, slots_BP].set(labels, mode="drop")
        corrupted = input_ids.at[rows_B1, slots_BP].set(samples_BP, mode="drop")
        judged = super().__call__(corrupted, key=discriminator_key, **inputs)
        return ReplacedTokenOutput(generated.logits, judged.logits, corrupted != original)


HEADS = {
    "base": heads.Model,
    "masked-lm": heads.MaskedLM,
    "pretraining": Discriminator,
    "sequence-classification": heads.Classification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
    "multiple-choice": heads.MultipleChoice,
}
# Trained as one, saved as two: nothing in transformers is like it.
JOINT_HEADS = {"joint-pretraining": Joint}
