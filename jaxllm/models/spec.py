"""What an encoder is, as a value a family makes from its transformers config; and its layers."""

from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Self

import jax
from flax import nnx

from jaxllm.models.compute import Compute
from jaxllm.nn.layers import Dense, Embed, LayerNorm, RMSNorm


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
        is_decoder: a token sees none behind it.
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
    is_decoder: bool = False

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

    def layers(self, compute: Compute, rngs: nnx.Rngs) -> "Layers":
        """What makes this encoder's layers."""
        return Layers(self.initializer_range, self.layer_norm_eps, compute.dtype, rngs)


def head_dropout(config: Any) -> float:
    """The rate of BERT's heads: their own where there is one."""
    rate = config.classifier_dropout
    return config.hidden_dropout_prob if rate is None else rate


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one model, each from the next random draw of `rngs`.

    Attributes:
        stddev, cutoff: of weights, see `layers.normal`.
        eps, norm_bias: of norms; `rms`: they are RMSNorms.
        dtype: of the computation.
    """

    stddev: float
    eps: float
    dtype: Any
    rngs: nnx.Rngs
    cutoff: float | None = None
    norm_bias: bool = True
    rms: bool = False

    def from_key(self, key: jax.Array) -> "Layers":
        """The same, with draws of their own."""
        return replace(self, rngs=nnx.Rngs(params=key))

    def dense(
        self,
        inputs: int | tuple[int, ...],
        outputs: int | tuple[int, ...],
        *,
        stddev: float | None = None,
        use_bias: bool = True,
    ) -> Dense:
        """A linear layer between axes of these sizes."""
        shapes = [(size,) if isinstance(size, int) else size for size in (inputs, outputs)]
        return Dense(
            *shapes,
            stddev=self.stddev if stddev is None else stddev,
            cutoff=self.cutoff,
            use_bias=use_bias,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def norm(self, width: int) -> LayerNorm | RMSNorm:
        if self.rms:
            return RMSNorm(width, eps=self.eps, dtype=self.dtype)
        return LayerNorm(width, eps=self.eps, use_bias=self.norm_bias, dtype=self.dtype)

    def embed(self, size: int, width: int) -> Embed:
        return Embed(
            size,
            width,
            stddev=self.stddev,
            cutoff=self.cutoff,
            dtype=self.dtype,
            rngs=self.rngs,
        )
