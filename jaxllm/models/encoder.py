"""The encoder that BERT, RoBERTa, DistilBERT and ELECTRA share: LayerNorm after each sum."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.attention.backends import make_attend
from jaxllm.attention.base import Attend
from jaxllm.attention.cache import Cache
from jaxllm.attention.visibility import Visibility, segment_positions
from jaxllm.errors import InputError
from jaxllm.models.blocks import Stack, gather_tokens, scan_blocks
from jaxllm.models.cached import cached_blocks, check_call, empty_cache
from jaxllm.models.compute import Compute
from jaxllm.models.family import POSITIONS, TYPES, Family
from jaxllm.models.outputs import EncoderOutput
from jaxllm.models.spec import EncoderSpec, Layers
from jaxllm.names.table import Table
from jaxllm.nn.layers import ACTIVATIONS, Key, dropout, is_embedded, split_key
from jaxllm.nn.sharding import constrain


class Embeddings(nnx.Module):
    def __init__(self, spec: EncoderSpec, layers: Layers):
        E, D = spec.embedding_size, spec.hidden_size
        self.word = layers.embed(spec.vocab_size, E)
        self.position = layers.embed(spec.max_position_embeddings, E)
        self.has_types = spec.type_vocab_size > 0
        self.has_one_type = spec.type_vocab_size == 1
        if self.has_types:
            self.token_type = layers.embed(spec.type_vocab_size, E)
        self.norm = layers.norm(E)
        self.is_projected = E != D
        if self.is_projected:
            self.project = layers.dense(E, D)
        self.dropout_rate = spec.hidden_dropout_prob

    def __call__(
        self,
        tokens: jax.Array,
        token_type_ids: jax.Array | None,
        position_ids: jax.Array,
        key: Key,
    ) -> jax.Array:
        x_BTE = self.word(tokens)
        if self.has_types:
            # KLUE's RoBERTa has one type and a tokenizer that marks the second text with another.
            if token_type_ids is None or self.has_one_type:
                token_type_ids = jnp.zeros(tokens.shape[:2], jnp.int32)
            x_BTE = x_BTE + self.token_type(token_type_ids)
        x_BTE = self.norm(x_BTE + self.position(position_ids))
        x_BTE = dropout(x_BTE, self.dropout_rate, key)
        return self.project(x_BTE) if self.is_projected else x_BTE


class Attention(nnx.Module):
    def __init__(self, spec: EncoderSpec, layers: Layers):
        D, N = spec.hidden_size, spec.num_attention_heads
        if D % N:
            raise InputError(
                f"hidden_size={D} is not divisible by num_attention_heads={N}; "
                f"choose {D // N * N} or {(D // N + 1) * N}"
            )
        heads = (N, D // N)
        self.query = layers.dense(D, heads)
        self.key = layers.dense(D, heads)
        self.value = layers.dense(D, heads)
        self.output = layers.dense(heads, D)
        self.norm = layers.norm(D)
        self.attention_dropout = spec.attention_probs_dropout_prob
        self.hidden_dropout = spec.hidden_dropout_prob

    def __call__(
        self, x_BTD: jax.Array, attend: Attend, key: Key, queries: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        weights_key, output_key = split_key(key, 2)
        q_BTD = x_BTD
        if queries is not None:
            q_BTD, attend = gather_tokens(x_BTD, queries), attend.at(queries)
        out_BTNH, weights = attend(
            self.query(q_BTD),
            self.key(x_BTD),
            self.value(x_BTD),
            dropout_rate=self.attention_dropout,
            key=weights_key,
        )
        out_BTD = dropout(self.output(out_BTNH), self.hidden_dropout, output_key)
        return self.norm(q_BTD + out_BTD), weights


class MLP(nnx.Module):
    def __init__(self, spec: EncoderSpec, layers: Layers):
        D, F = spec.hidden_size, spec.intermediate_size
        self.up = layers.dense(D, F)
        self.down = layers.dense(F, D)
        self.norm = layers.norm(D)
        self.activation = ACTIVATIONS[spec.hidden_act]
        self.hidden_dropout = spec.hidden_dropout_prob

    def __call__(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        out_BTD = self.down(self.activation(self.up(x_BTD)))
        return self.norm(x_BTD + dropout(out_BTD, self.hidden_dropout, key))


class Block(nnx.Module):
    def __init__(self, spec: EncoderSpec, layers: Layers):
        self.attention = Attention(spec, layers)
        self.mlp = MLP(spec, layers)

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


class Encoder(Stack):
    """Embeddings, and L blocks stacked on a leading axis and scanned."""

    def __init__(self, spec: EncoderSpec, compute: Compute, rngs: nnx.Rngs):
        self.spec, self.compute = spec, compute
        layers = spec.layers(compute, rngs)
        self.embeddings = Embeddings(spec, layers)
        keys = jax.random.split(rngs.params(), spec.num_hidden_layers)
        self.blocks = jax.vmap(lambda key: Block(spec, layers.from_key(key)))(keys)

    def position_ids(self, tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """[B, T]: the position ids of a caller who gives none; they restart in each segment."""
        if segment_ids is not None:  # padding may be longer than there are positions
            positions = jnp.where(segment_ids > 0, segment_positions(segment_ids), 0)
            return positions + self.spec.first_position
        padding_idx = self.spec.padding_idx
        if padding_idx is None or is_embedded(tokens):
            positions = jnp.arange(tokens.shape[1])[None] + self.spec.first_position
            return jnp.broadcast_to(positions, tokens.shape[:2])
        # As in fairseq's make_positions: padding, wherever it is, has the id of padding.
        is_token = (tokens != padding_idx).astype(jnp.int32)
        return jnp.cumsum(is_token, axis=1) * is_token + padding_idx

    def empty_cache(self, rows: int, places: int) -> Cache:
        """A cache for `rows` texts of at most `places` tokens, of a decoder."""
        N = self.spec.num_attention_heads
        H = self.spec.hidden_size // N
        return empty_cache(self.blocks, rows, places, N, H, self.compute.dtype)

    def encode(
        self,
        tokens: jax.Array,
        *,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        queries: jax.Array | None = None,
        cache: Cache | None = None,
        key: Key = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """The encoder without a head; all ids are int32 [B, T], `tokens` may be embeddings
        [B, T, E], `attention_mask` as in `Visibility.of_rows`.

        Packed rows give `segment_ids`: 1, 2, … for the examples, one after the other, 0 for
        padding. `position_ids` are rows of the position table, by default those that each example
        would have alone. `queries` [B, P]: the last block computes these tokens only, the last
        hidden state is [B, P, D]. The same numbers for less: a classifier needs one token of each
        example, a masked LM 15 % of them. `cache`: of a decoder, as in `Decoder.encode`.
        """
        T = tokens.shape[1]
        if position_ids is None:
            if segment_ids is None and T > self.spec.max_tokens:
                raise InputError(
                    f"the batch has {T} tokens a row, the model has {self.spec.max_tokens} "
                    "positions; truncate or split the rows"
                )
            position_ids = self.position_ids(tokens, segment_ids)
            if cache is not None:
                position_ids = position_ids + cache.length
        embed_key, blocks_key = split_key(key, 2)
        x_BTD = constrain(self.embeddings(tokens, token_type_ids, position_ids, embed_key), "BTD")
        if cache is not None:
            check_call(
                segment_ids=segment_ids,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )

            def one(module: Block, x_BTD: jax.Array, attend: Any) -> jax.Array:
                return module(x_BTD, attend, None)[0]

            windows = [None] * self.spec.num_hidden_layers
            x_BTD, cache = cached_blocks(self.blocks, x_BTD, cache, attention_mask, windows, one)
            return EncoderOutput(
                x_BTD if queries is None else gather_tokens(x_BTD, queries), cache=cache
            )

        visibility = Visibility.of_rows(T, attention_mask, segment_ids, causal=self.spec.is_decoder)
        attend = make_attend(self.compute.attention, visibility, weights=output_attentions)

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
            self.compute,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
        )


def encoder_family(
    spec: Callable[[Any], EncoderSpec],
    heads: Mapping[str, Callable[..., nnx.Module]],
    table: Table,
    *,
    ids: Mapping[str, str] = POSITIONS | TYPES,
) -> Family:
    """A family whose stack is `Encoder`. `ids`: of its tables beside the words', see `Family`."""
    return Family(
        spec,
        Encoder,
        heads,
        max_tokens=lambda config: spec(config).max_tokens,
        windows=lambda config: [math.inf] * config.num_hidden_layers,
        ids={"input_ids": "vocab_size", **ids},
        table=table,
    )
