"""BERT (Devlin et al., 2018), equal in numbers to transformers' PyTorch classes.

`config` is a transformers BertConfig.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import heads
from jaxllm.models.blocks import gather_tokens
from jaxllm.models.encoder import Encoder, encoder_family
from jaxllm.models.outputs import PretrainingOutput
from jaxllm.models.spec import EncoderSpec, Layers, head_dropout
from jaxllm.names.bert import BERT
from jaxllm.nn.layers import Key


def spec(config: Any) -> EncoderSpec:
    rate = head_dropout(config)
    return EncoderSpec.of(
        config,
        classifier_dropout=rate,
        token_dropout=rate,
        choice_dropout=rate,
        mlm_act=config.hidden_act,
        is_decoder=config.is_decoder,
    )


class NextSentence(heads.SequenceHead, heads.Pooler):
    """Whether the second text follows the first: logits [B, 2] or [B, P, 2], class 0 for yes."""

    def __init__(self, spec: EncoderSpec, layers: Layers):
        super().__init__(spec, layers)
        self.next_sentence = layers.dense(spec.hidden_size, 2)

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.next_sentence(self.pool(x_BPD))


class Pretraining(heads.Pooler):
    """Masked LM and next sentence at once.

    prediction_logits [B, T, V], or [B, P, V] at `head_positions`; seq_relationship_logits [B, 2] of
    the first token, or [B, Q, 2] at `pooled_positions`.
    """

    def __init__(self, spec: EncoderSpec, layers: Layers):
        super().__init__(spec, layers)
        self.mlm = heads.MLMLayers(spec, layers)
        self.next_sentence = layers.dense(spec.hidden_size, 2)

    def __call__(
        self,
        stack: Encoder,
        tokens: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        pooled_positions: jax.Array | None = None,
        **inputs: Any,
    ) -> PretrainingOutput:
        first = jnp.zeros((tokens.shape[0], 1), jnp.int32)
        firsts = first if pooled_positions is None else pooled_positions
        if head_positions is None:
            x_masked, out = stack.encode_at(tokens, None, **inputs)
            x_firsts = gather_tokens(x_masked, firsts)
        else:
            P = head_positions.shape[1]
            both = jnp.concatenate([head_positions, firsts], axis=1)
            x, out = stack.encode_at(tokens, both, **inputs)
            x_masked, x_firsts = x[:, :P], x[:, P:]
        relationship = self.next_sentence(self.pool(x_firsts)).astype(jnp.float32)
        return PretrainingOutput(
            self.mlm(x_masked, stack.embeddings.word),
            relationship[:, 0] if pooled_positions is None else relationship,
            out.hidden_states,
            out.attentions,
        )


HEADS = {
    "base": heads.Pooled,
    "masked-lm": heads.MaskedLM,
    "causal-lm": heads.CausalLM,
    "pretraining": Pretraining,
    "next-sentence": NextSentence,
    "sequence-classification": heads.PooledClassification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
    "multiple-choice": heads.MultipleChoice,
}
FAMILY = encoder_family(spec, HEADS, BERT)
