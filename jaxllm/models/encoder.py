"""The encoder that BERT, RoBERTa, DistilBERT and ELECTRA share: LayerNorm after each residual sum.

The heads (heads.py) are encoders with layers of their own, so all models of a family have the same
parameter paths.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.attend import Attend
from jaxllm.attention import segment_positions
from jaxllm.attention_backends import make_attend
from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS, Embed, Key, dropout, split_key
from jaxllm.models.blocks import QueriedEncoder, gather_tokens, scan_blocks
from jaxllm.models.outputs import EncoderOutput
from jaxllm.models.spec import EncoderSpec, dense, layer_norm
from jaxllm.sharding import constrain


class Embeddings(nnx.Module):
    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        E, D = spec.embedding_size, spec.hidden_size
        embed = partial(Embed, width=E, stddev=spec.initializer_range, dtype=spec.dtype, rngs=rngs)
        self.word = embed(spec.vocab_size)
        self.position = embed(spec.max_position_embeddings)
        self.has_types = spec.type_vocab_size > 0
        self.has_one_type = spec.type_vocab_size == 1
        if self.has_types:
            self.token_type = embed(spec.type_vocab_size)
        self.norm = layer_norm(spec, E)
        self.is_projected = E != D
        if self.is_projected:
            self.project = dense(spec, rngs, E, D)
        self.dropout_rate = spec.hidden_dropout_prob

    def __call__(
        self,
        input_ids: jax.Array,
        token_type_ids: jax.Array | None,
        position_ids: jax.Array,
        key: Key,
    ) -> jax.Array:
        x_BTE = self.word(input_ids)
        if self.has_types:
            # KLUE's RoBERTa has one type and a tokenizer that marks the second text with another.
            if token_type_ids is None or self.has_one_type:
                token_type_ids = jnp.zeros_like(input_ids)
            x_BTE = x_BTE + self.token_type(token_type_ids)
        x_BTE = self.norm(x_BTE + self.position(position_ids))
        x_BTE = dropout(x_BTE, self.dropout_rate, key)
        return self.project(x_BTE) if self.is_projected else x_BTE


class Attention(nnx.Module):
    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        D, N = spec.hidden_size, spec.num_attention_heads
        if D % N:
            raise InputError(
                f"hidden_size={D} is not divisible by num_attention_heads={N}; "
                f"choose {D // N * N} or {(D // N + 1) * N}"
            )
        heads = (N, D // N)
        self.query = dense(spec, rngs, D, heads)
        self.key = dense(spec, rngs, D, heads)
        self.value = dense(spec, rngs, D, heads)
        self.output = dense(spec, rngs, heads, D)
        self.norm = layer_norm(spec, D)
        self.attention_dropout = spec.attention_probs_dropout_prob
        self.hidden_dropout = spec.hidden_dropout_prob

    def __call__(
        self, x_BTD: jax.Array, attend: Attend, key: Key, queries: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        weights_key, output_key = split_key(key, 2)
        q_BTD = x_BTD if queries is None else gather_tokens(x_BTD, queries)
        out_BTNH, weights = attend(
            self.query(q_BTD),
            self.key(x_BTD),
            self.value(x_BTD),
            dropout_rate=self.attention_dropout,
            key=weights_key,
            queries_BP=queries,
        )
        out_BTD = dropout(self.output(out_BTNH), self.hidden_dropout, output_key)
        return self.norm(q_BTD + out_BTD), weights


class MLP(nnx.Module):
    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        D, F = spec.hidden_size, spec.intermediate_size
        self.up = dense(spec, rngs, D, F)
        self.down = dense(spec, rngs, F, D)
        self.norm = layer_norm(spec, D)
        self.activation = ACTIVATIONS[spec.hidden_act]
        self.hidden_dropout = spec.hidden_dropout_prob

    def __call__(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        out_BTD = self.down(self.activation(self.up(x_BTD)))
        return self.norm(x_BTD + dropout(out_BTD, self.hidden_dropout, key))


class Block(nnx.Module):
    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        self.attention = Attention(spec, rngs)
        self.mlp = MLP(spec, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        attend: Attend,
        key: Key,
        queries: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`queries` [B, P]: compute these tokens only, which still look at all; then T is P."""
        attention_key, mlp_key = split_key(key, 2)
        x_BTD, weights = self.attention(x_BTD, attend, attention_key, queries)
        return constrain(self.mlp(x_BTD, mlp_key), "BTD"), weights


class Encoder(QueriedEncoder):
    """Embeddings, and L blocks stacked on a leading axis and scanned."""

    def __init__(self, spec: EncoderSpec, rngs: nnx.Rngs):
        self.spec = spec
        self.embeddings = Embeddings(spec, rngs)
        keys = jax.random.split(rngs.params(), spec.num_hidden_layers)
        self.blocks = jax.vmap(lambda k: Block(spec, nnx.Rngs(params=k)))(keys)

    def position_ids(self, input_ids: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """[B, T]: those that nobody gave. They restart in each segment of a packed row."""
        if segment_ids is not None:  # padding may be longer than there are positions
            positions = jnp.where(segment_ids > 0, segment_positions(segment_ids), 0)
            return positions + self.spec.first_position
        padding_idx = self.spec.padding_idx
        if padding_idx is None:
            return jnp.broadcast_to(jnp.arange(input_ids.shape[1])[None], input_ids.shape)
        # As in fairseq's make_positions: padding, wherever it is, has the id of padding.
        is_token = (input_ids != padding_idx).astype(jnp.int32)
        return jnp.cumsum(is_token, axis=1) * is_token + padding_idx

    def encode(
        self,
        input_ids: jax.Array,
        *,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        queries: jax.Array | None = None,
        key: Key = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """The encoder without a head; all ids are int32 [B, T].

        Packed rows give `segment_ids`: 1, 2, … for the examples, one after the other, 0 for
        padding. `position_ids` are rows of the position table, by default those that each example
        would have alone. `queries` [B, P]: the last block computes these tokens only, the last
        hidden state is [B, P, D]. The same numbers for less: a classifier needs one token of each
        example, a masked LM 15 % of them.
        """
        T = input_ids.shape[1]
        if position_ids is None:
            if segment_ids is None and T > self.spec.max_tokens:
                raise InputError(
                    f"input_ids has {T} tokens a row, the model has {self.spec.max_tokens} "
                    "positions; truncate or split the rows"
                )
            position_ids = self.position_ids(input_ids, segment_ids)
        embed_key, blocks_key = split_key(key, 2)
        attend = make_attend(
            self.spec.attention, T, attention_mask, segment_ids, weights=output_attentions
        )
        x_BTD = constrain(
            self.embeddings(input_ids, token_type_ids, position_ids, embed_key), "BTD"
        )

        graphdef, blocks = nnx.split(self.blocks)
        keys = (
            None
            if blocks_key is None
            else jax.random.split(blocks_key, self.spec.num_hidden_layers)
        )

        def block(x_BTD: jax.Array, layer: tuple, queries: jax.Array | None) -> tuple:
            params, layer_key = layer
            return nnx.merge(graphdef, params)(x_BTD, attend, layer_key, queries)

        return scan_blocks(
            block,
            x_BTD,
            (blocks, keys),
            queries,
            remat=self.spec.remat,
            unroll=self.spec.unroll or self.spec.num_hidden_layers,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
        )
