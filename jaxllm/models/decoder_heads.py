"""Heads of decoders: the next token, and classes of texts by their last token."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models import heads
from jaxllm.models.blocks import Stack
from jaxllm.models.decoder import DecoderSpec
from jaxllm.models.outputs import EncoderOutput
from jaxllm.models.spec import Layers
from jaxllm.nn.layers import Embed, Key, dropout, is_embedded


class CausalLM(heads.VocabularyHead):
    """The next token: logits [B, T, V], or [B, P, V] at `head_positions` only."""

    def __init__(self, spec: DecoderSpec, layers: Layers):
        D, V = spec.hidden_size, spec.vocab_size
        self.is_tied = spec.is_tied
        self.lm_head = None if spec.is_tied else layers.dense(D, V, use_bias=False)

    def scores(self, x: jax.Array, word: Embed) -> jax.Array:
        return word.attend(x) if self.lm_head is None else self.lm_head(x)


class SequenceClassification(heads.SequenceHead):
    """A linear layer on the last token of each text: logits [B, C], or [B, P, C] for the segments
    that begin at `head_positions`.

    The last token that is not padding: by the config's pad_token_id, as in transformers, else by
    the mask.
    """

    def __init__(self, spec: DecoderSpec, layers: Layers):
        self.score = layers.dense(spec.hidden_size, spec.num_labels, use_bias=False)
        self.pad_token_id = spec.pad_token_id

    def scores(self, x_BPD: jax.Array, key: Key) -> jax.Array:
        return self.score(x_BPD)

    def vectors(
        self, stack: Stack, tokens: jax.Array, positions_BP: jax.Array, **inputs: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """([B, P, D]: of each text that begins at a position the last token, the output)."""
        counts_BT = jnp.ones(tokens.shape[:2], bool)
        mask, segments = inputs.get("attention_mask"), inputs.get("segment_ids")
        if self.pad_token_id is not None and not is_embedded(tokens):
            counts_BT = tokens != self.pad_token_id
        elif mask is not None and mask.ndim == 2:
            counts_BT = mask != 0
        counts_BPT = counts_BT[:, None]
        if segments is not None:
            own_BP = jnp.take_along_axis(segments, positions_BP, axis=1)
            counts_BPT = counts_BPT & (own_BP[:, :, None] == segments[:, None])
        places_T = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, None]
        last_BP = jnp.max(jnp.where(counts_BPT, places_T, 0), axis=-1)
        return stack.encode_at(tokens, last_BP, **inputs)


class TokenScores(heads.TokenHead):
    """`TokenClassification` of the Llama shape, whose layer has the name of that for texts."""

    def __init__(self, spec: DecoderSpec, layers: Layers):
        self.score = layers.dense(spec.hidden_size, spec.num_labels)
        self.dropout_rate = spec.classifier_dropout

    def scores(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        return self.score(dropout(x_BTD, self.dropout_rate, key))


HEADS: dict[str, type[nnx.Module]] = {
    "base": heads.Bare,
    "causal-lm": CausalLM,
    "sequence-classification": SequenceClassification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
}
