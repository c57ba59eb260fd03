"""BERT (Devlin et al., 2018): encoder, pooler, sequence-classification and masked-LM heads.

Equal in numbers to transformers' PyTorch classes of the same names. `config` is a transformers
BertConfig.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.attention import attention_mask as make_mask
from jaxllm.attention import dot_product_attention
from jaxllm.layers import ACTIVATIONS, Dense, Embed, Key, LayerNorm, add_bias, dropout, split_key
from jaxllm.models.outputs import EncoderOutput, HeadOutput
from jaxllm.sharding import constrain

REMAT_POLICIES = {
    "full": None,  # keep the block's input only
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the matrix products
}


class BertEmbeddings(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        embed = partial(
            Embed, width=config.hidden_size, stddev=config.initializer_range, dtype=dtype, rngs=rngs
        )
        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        self.token_type = embed(config.type_vocab_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, dtype=dtype)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array, position_ids: jax.Array, key: Key
    ) -> jax.Array:
        x_BTD = self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        return dropout(self.norm(x_BTD), self.dropout_rate, key)


class BertAttention(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, N = config.hidden_size, config.num_attention_heads
        if D % N:
            raise ValueError(
                f"hidden_size={D} is not divisible by num_attention_heads={N}; "
                f"choose {D // N * N} or {(D // N + 1) * N}"
            )
        H = D // N
        dense = partial(Dense, stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.query = dense((D,), (N, H))
        self.key = dense((D,), (N, H))
        self.value = dense((D,), (N, H))
        self.output = dense((N, H), (D,))
        self.norm = LayerNorm(D, eps=config.layer_norm_eps, dtype=dtype)
        self.attention_dropout = config.attention_probs_dropout_prob
        self.hidden_dropout = config.hidden_dropout_prob

    def __call__(
        self, x_BTD: jax.Array, mask: jax.Array | None, key: Key, queries: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        weights_key, output_key = split_key(key, 2)
        q_BTD = x_BTD
        if queries is not None:
            q_BTD = gather_tokens(x_BTD, queries)
            if mask is not None and mask.shape[2] > 1:  # [B, 1, T, S] to [B, 1, P, S]
                mask = jnp.take_along_axis(mask, queries[:, None, :, None], axis=2)
        out_BTNH, weights = dot_product_attention(
            self.query(q_BTD),
            self.key(x_BTD),
            self.value(x_BTD),
            mask=mask,
            dropout_rate=self.attention_dropout,
            key=weights_key,
        )
        out_BTD = dropout(self.output(out_BTNH), self.hidden_dropout, output_key)
        return self.norm(q_BTD + out_BTD), weights


class BertMLP(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        dense = partial(Dense, stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.up = dense((D,), (F,))
        self.down = dense((F,), (D,))
        self.norm = LayerNorm(D, eps=config.layer_norm_eps, dtype=dtype)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.hidden_dropout = config.hidden_dropout_prob

    def __call__(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        out_BTD = self.down(self.activation(self.up(x_BTD)))
        return self.norm(x_BTD + dropout(out_BTD, self.hidden_dropout, key))


class BertBlock(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention = BertAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = BertMLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        mask: jax.Array | None,
        key: Key,
        queries: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """`queries` [B, P]: compute these tokens only, which still look at all; then T is P."""
        attention_key, mlp_key = split_key(key, 2)
        x_BTD, weights = self.attention(x_BTD, mask, attention_key, queries)
        return constrain(self.mlp(x_BTD, mlp_key), "BTD"), weights


class BertEncoder(nnx.Module):
    """Embeddings, L blocks stacked on a leading axis and scanned, and the tanh pooler.

    The heads below are encoders with one more layer, so every model has the same parameter paths.
    `unroll`: blocks in one iteration of the scan, 0 = all.
    `remat`: none, full, or dots (REMAT_POLICIES).
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
        remat: str = "none",
        unroll: int = 1,
        add_pooler: bool = True,
    ):
        self.embeddings = BertEmbeddings(config, dtype=dtype, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.num_hidden_layers)
        self.blocks = jax.vmap(lambda k: BertBlock(config, dtype=dtype, rngs=nnx.Rngs(params=k)))(
            keys
        )
        if add_pooler:
            D = config.hidden_size
            self.pooler = Dense((D,), (D,), stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.num_layers = config.num_hidden_layers
        self.max_positions = config.max_position_embeddings
        self.remat = remat
        self.unroll = unroll or config.num_hidden_layers

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
        """The encoder without its pooler; all ids are int32 [B, T].

        Packed rows give `segment_ids` (0 = padding) and `position_ids` that restart in each
        segment. `queries` [B, P]: the last block computes these tokens only, the last hidden state
        is [B, P, D]. The same numbers for less: a classifier needs one token of each example, a
        masked LM 15 % of them.
        """
        B, T = input_ids.shape
        if T > self.max_positions:
            raise ValueError(
                f"input_ids has {T} tokens a row, the model has {self.max_positions} positions; "
                "truncate or split the rows"
            )
        if token_type_ids is None:
            token_type_ids = jnp.zeros((B, T), jnp.int32)
        if position_ids is None:
            position_ids = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        embed_key, blocks_key = split_key(key, 2)
        mask = make_mask(attention_mask, segment_ids)
        x_BTD = constrain(
            self.embeddings(input_ids, token_type_ids, position_ids, embed_key), "BTD"
        )

        graphdef, blocks = nnx.split(self.blocks)
        keys = None if blocks_key is None else jax.random.split(blocks_key, self.num_layers)

        def body(x_BTD: jax.Array, layer: tuple, queries: jax.Array | None = None) -> tuple:
            params, layer_key = layer
            x_BTD, weights = nnx.merge(graphdef, params)(x_BTD, mask, layer_key, queries)
            return x_BTD, (
                x_BTD if output_hidden_states else None,
                weights if output_attentions else None,
            )

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat])
        layers = (blocks, keys)
        embedded, last = x_BTD, None
        if queries is not None:
            last = jax.tree.map(lambda a: a[-1], layers)
            layers = jax.tree.map(lambda a: a[:-1], layers)
        collected: tuple
        x_BTD, collected = jax.lax.scan(body, x_BTD, layers, unroll=self.unroll)
        if last is not None:
            x_BTD, _ = body(x_BTD, last, queries)
        hidden, weights = collected
        return EncoderOutput(
            last_hidden_state=x_BTD,
            hidden_states=(embedded, *hidden) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )

    def encode_heads(
        self, input_ids: jax.Array, queries: jax.Array | None, **inputs: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """(last hidden state of the queried tokens [B, P, D], the encoder's output).

        Where hidden states or attentions are asked for, they are those of all tokens.
        """
        if queries is None or inputs.get("output_hidden_states") or inputs.get("output_attentions"):
            out = self.encode(input_ids, **inputs)
            x = out.last_hidden_state
            return (x if queries is None else gather_tokens(x, queries)), out
        out = self.encode(input_ids, queries=queries, **inputs)
        return out.last_hidden_state, out

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.pooler(x))


class BertModel(BertEncoder):
    """The bare model: last hidden state, and the pooled first token or `head_positions` [B, P]."""

    def __call__(
        self, input_ids: jax.Array, *, head_positions: jax.Array | None = None, **inputs: Any
    ) -> EncoderOutput:
        out = self.encode(input_ids, **inputs)
        x_BTD = out.last_hidden_state
        first = x_BTD[:, 0] if head_positions is None else gather_tokens(x_BTD, head_positions)
        return replace(out, pooler_output=self.pool(first))


class BertForSequenceClassification(BertEncoder):
    """Dropout and a linear layer on the pooled first token; one row of logits for each entry of
    `head_positions`.
    """

    def __init__(
        self, config: Any, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **encoder_options: Any
    ):
        super().__init__(config, dtype=dtype, rngs=rngs, **encoder_options)
        self.classifier = Dense(
            (config.hidden_size,),
            (config.num_labels,),
            stddev=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        rate = config.classifier_dropout
        self.dropout_rate = config.hidden_dropout_prob if rate is None else rate

    def __call__(
        self,
        input_ids: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> HeadOutput:
        encoder_key, head_key = split_key(key, 2)
        queries = head_positions
        if queries is None:
            queries = jnp.zeros((input_ids.shape[0], 1), jnp.int32)
        x_BPD, out = self.encode_heads(input_ids, queries, key=encoder_key, **inputs)
        x = x_BPD[:, 0] if head_positions is None else x_BPD
        logits = self.classifier(dropout(self.pool(x), self.dropout_rate, head_key))
        return HeadOutput(logits.astype(jnp.float32), out.hidden_states, out.attentions)


class BertMLMHead(nnx.Module):
    """Dense, activation, LayerNorm; then the word embedding, transposed, and a bias of its own."""

    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D = config.hidden_size
        self.dense = Dense((D,), (D,), stddev=config.initializer_range, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(D, eps=config.layer_norm_eps, dtype=dtype)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), jnp.float32))
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: jax.Array, word: Embed) -> jax.Array:
        logits = word.attend(self.norm(self.activation(self.dense(x))))
        return add_bias(logits, self.bias[...].astype(logits.dtype))


class BertForMaskedLM(BertEncoder):
    """Logits [B, T, V], or [B, P, V] at `head_positions` only."""

    def __init__(
        self, config: Any, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs, **encoder_options: Any
    ):
        super().__init__(config, dtype=dtype, rngs=rngs, add_pooler=False, **encoder_options)
        self.mlm = BertMLMHead(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        *,
        head_positions: jax.Array | None = None,
        key: Key = None,
        **inputs: Any,
    ) -> HeadOutput:
        x, out = self.encode_heads(input_ids, head_positions, key=key, **inputs)
        return HeadOutput(self.mlm(x, self.embeddings.word), out.hidden_states, out.attentions)


def gather_tokens(x_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """x_BPD: the tokens of each row at the given positions."""
    return jnp.take_along_axis(x_BTD, positions_BP[:, :, None], axis=1)
