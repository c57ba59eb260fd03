"""What an encoder is, as a value: `EncoderSpec`. A family makes it from its transformers config."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

import jax.numpy as jnp
from flax import nnx

from jaxllm.layers import Dense, LayerNorm


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder and its heads in numbers, under the names of transformers' BertConfig.

    Attributes:
        embedding_size: width of the embeddings, projected to `hidden_size` where that is another.
        type_vocab_size: 0 for a model without token types, which then have no effect.
        classifier_dropout: in the heads for sequences; `token_dropout`, `choice_dropout` and
            `span_dropout` in those for tokens, multiple choice and question answering.
        pooler_act: after the layer that a pooled head begins with.
        classifier_act: inside the classification head that has two layers of its own.
        padding_idx: position ids count the tokens that are not padding, from the id after this one
            on (RoBERTa); None: they are 0, 1, 2, …
        dtype: of the computation.
        attention: a name in attention_backends.ATTENDS.
        remat: none, full, or dots (REMAT_POLICIES in blocks.py).
        unroll: blocks in one iteration of the scan, 0 = all.
    """

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    layer_norm_eps: float
    initializer_range: float
    num_labels: int
    classifier_dropout: float
    token_dropout: float
    choice_dropout: float
    span_dropout: float = 0.0
    mlm_act: str = "gelu"
    pooler_act: str = "tanh"
    classifier_act: str = "tanh"
    padding_idx: int | None = None
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1

    @classmethod
    def of(cls, config: Any, **values: Any) -> Self:
        """What `values` do not say is read from the transformers config."""
        values = {"embedding_size": config.hidden_size, **values}
        for field in fields(cls):
            if field.name not in values and field.default is MISSING:
                values[field.name] = getattr(config, field.name)
        return cls(**values)

    @property
    def first_position(self) -> int:
        return 0 if self.padding_idx is None else self.padding_idx + 1

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest example that there are positions for."""
        return self.max_position_embeddings - self.first_position


def head_dropout(config: Any) -> float:
    """The rate of BERT's heads: their own where there is one."""
    rate = config.classifier_dropout
    return config.hidden_dropout_prob if rate is None else rate


def dense(
    spec: EncoderSpec, rngs: nnx.Rngs, inputs: int | tuple[int, ...], outputs: int | tuple[int, ...]
) -> Dense:
    """A linear layer between axes of these sizes."""
    shapes = [(size,) if isinstance(size, int) else size for size in (inputs, outputs)]
    return Dense(*shapes, stddev=spec.initializer_range, dtype=spec.dtype, rngs=rngs)


def layer_norm(spec: EncoderSpec, width: int) -> LayerNorm:
    return LayerNorm(width, eps=spec.layer_norm_eps, dtype=spec.dtype)
