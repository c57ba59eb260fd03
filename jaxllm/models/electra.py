"""ELECTRA (Clark et al., 2020): a generator that fills masks, a discriminator that finds them out.

Both are BERT encoders whose embeddings may be narrower than their blocks. "masked-lm" is the
generator, "pretraining" the discriminator; where they are trained together they share
`embeddings/word` and the other embeddings. Equal in numbers to transformers' PyTorch classes.
`config` is a transformers ElectraConfig.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS, Key, split_key
from jaxllm.models import heads
from jaxllm.models.outputs import HeadOutput, ReplacedTokenOutput
from jaxllm.models.spec import EncoderSpec, dense, head_dropout

SHARED_TABLES = ("word", "position", "token_type", "norm")  # of the embeddings of both
# What a generator's config has for itself.
GENERATOR_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
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


def generator_config(config: Any) -> Any:
    """The config of the generator that is trained with this discriminator.

    Its sizes are those in `config.generator`; without, the width and the heads are a quarter, as
    those of the paper's small and large models.
    """
    sizes = getattr(config, "generator", None)
    if sizes is None:
        if config.num_attention_heads % _GENERATOR_SHARE:
            raise InputError(
                f"model.config: num_attention_heads={config.num_attention_heads} cannot be divided "
                f"by {_GENERATOR_SHARE} for the generator; choose 4, 8, 12 or 16, or give its "
                "sizes: generator: {hidden_size: …, intermediate_size: …, num_attention_heads: …}"
            )
        sizes = {name: getattr(config, name) // _GENERATOR_SHARE for name in GENERATOR_SIZES[1:]}
    if not isinstance(sizes, dict) or not sizes.keys() <= set(GENERATOR_SIZES):
        raise InputError(
            f"model.config: found generator={sizes!r}, expected sizes by name, of "
            f"{', '.join(GENERATOR_SIZES)}"
        )
    generator = copy.deepcopy(config)
    for name, value in (sizes | {"generator": None}).items():
        setattr(generator, name, value)
    if generator.hidden_size % generator.num_attention_heads:
        raise InputError(
            f"model.config: the generator's hidden_size={generator.hidden_size} is not divisible "
            f"by its num_attention_heads={generator.num_attention_heads}"
        )
    return generator


def joint(config: Any, *, rngs: nnx.Rngs, **options: Any) -> "Joint":
    """The module of "joint-pretraining"."""
    return Joint(spec(config, **options), spec(generator_config(config), **options), rngs)


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

    The discriminator sees the generator's samples in the place of masks, and no gradient goes
    through them.
    """

    def __init__(self, spec: EncoderSpec, generator: EncoderSpec, rngs: nnx.Rngs):
        super().__init__(spec, rngs)
        self.generator = heads.MaskedLM(generator, rngs)
        for table in SHARED_TABLES:
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
