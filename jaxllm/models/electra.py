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
from jaxllm.models import heads
from jaxllm.models.compute import Compute
from jaxllm.models.encoder import encoder_family
from jaxllm.models.outputs import ReplacedTokenOutput
from jaxllm.models.spec import EncoderSpec, Layers, head_dropout
from jaxllm.names.electra import ELECTRA
from jaxllm.nn.layers import ACTIVATIONS, Key, split_key

SHARED_TABLES = ("word", "position", "token_type", "norm")  # of the embeddings of both
# What a generator's config has for itself.
GENERATOR_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_GENERATOR_SHARE = 4


def spec(config: Any) -> EncoderSpec:
    rate = head_dropout(config)
    return EncoderSpec.of(
        config,
        embedding_size=config.embedding_size,
        classifier_dropout=rate,
        token_dropout=rate,
        choice_dropout=config.summary_last_dropout,
        mlm_act="gelu",
        is_decoder=config.is_decoder,
        pooler_act=config.summary_activation,
        classifier_act="gelu",
    )


def generator_config(config: Any, sizes: Any = None) -> Any:
    """The config of a generator that is trained with this discriminator.

    `sizes`: those in which they differ, by name; without, the width and the heads are a quarter, as
    those of the paper's small and large models.
    """
    if sizes is None:
        if config.num_attention_heads % _GENERATOR_SHARE:
            raise InputError(
                f"model.config: num_attention_heads={config.num_attention_heads} cannot be divided "
                f"by {_GENERATOR_SHARE} for the generator; choose 4, 8, 12 or 16, or give its "
                "sizes: generator: {hidden_size: …, intermediate_size: …, num_attention_heads: …}"
            )
        sizes = {name: getattr(config, name) // _GENERATOR_SHARE for name in GENERATOR_SIZES[1:]}
    named = isinstance(sizes, dict) and sizes.keys() <= set(GENERATOR_SIZES)
    if not named or not all(type(size) is int and size >= 1 for size in sizes.values()):
        raise InputError(
            f"model.config: found generator={sizes!r}, expected sizes by name, of "
            f"{', '.join(GENERATOR_SIZES)}, each a whole number of at least 1"
        )
    generator = copy.deepcopy(config)
    for name, value in sizes.items():
        setattr(generator, name, value)
    if generator.hidden_size % generator.num_attention_heads:
        raise InputError(
            f"model.config: the generator's hidden_size={generator.hidden_size} is not divisible "
            f"by its num_attention_heads={generator.num_attention_heads}"
        )
    return generator


class DiscriminatorLayers(nnx.Module):
    """Dense, activation, one score."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.dense = layers.dense(spec.hidden_size, spec.hidden_size)
        self.output = layers.dense(spec.hidden_size, 1)
        self.activation = ACTIVATIONS[spec.hidden_act]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.activation(self.dense(x)))


class Discriminator(heads.TokenHead):
    """Replaced-token detection: logits [B, T], positive where a token is not the original one."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.discriminator = DiscriminatorLayers(spec, layers)

    def scores(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        return self.discriminator(x_BTD)[..., 0]


HEADS = {
    "base": heads.Bare,
    "masked-lm": heads.MaskedLM,
    "causal-lm": heads.CausalLM,
    "pretraining": Discriminator,
    "sequence-classification": heads.Classification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
    "multiple-choice": heads.MultipleChoice,
}
FAMILY = encoder_family(spec, HEADS, ELECTRA)


class Joint(nnx.Module):
    """Generator and discriminator as they are trained: the embeddings are one (section 3.2).

    The discriminator sees the generator's samples in the place of masks, and no gradient goes
    through them. The discriminator's parameters have the paths that it has alone, the generator's
    begin with `generator/`.
    """

    def __init__(self, config: Any, generator: Any, compute: Compute, rngs: nnx.Rngs):
        self._discriminator = FAMILY.model(config, "pretraining", compute, rngs)
        self.generator = FAMILY.model(generator, "masked-lm", compute, rngs)
        tables = self._discriminator.stack.embeddings
        for name in SHARED_TABLES:
            setattr(self.generator.stack.embeddings, name, getattr(tables, name))

    def __call__(
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
        judged = self._discriminator(corrupted, key=discriminator_key, **inputs)
        return ReplacedTokenOutput(generated.logits, judged.logits, corrupted != original)
