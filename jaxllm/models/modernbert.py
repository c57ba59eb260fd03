"""ModernBERT (Warner et al., 2024): the encoder.

Pre-norm blocks without biases, rotary positions, GeGLU, and attention that alternates between all
tokens (global) and a window around each (local). Equal in numbers to transformers' PyTorch class.
`config` is a transformers ModernBertConfig.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.attend import Attend, tokens_at
from jaxllm.attention import rotary_table, rotate, segment_positions
from jaxllm.attention_backends import make_attend
from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS, Dense, Embed, Key, LayerNorm, dropout, split_key
from jaxllm.models.blocks import QueriedEncoder, gather_tokens, scan_blocks
from jaxllm.models.outputs import EncoderOutput
from jaxllm.sharding import constrain

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # names in config.layer_types


def windows(config: Any) -> list[float]:
    """See `models.windows`."""
    return [math.inf if k == GLOBAL else config.local_attention for k in config.layer_types]


def make_dense(config: Any, **options: Any) -> Any:
    """`Dense` with the truncated normal draw of this family."""
    return partial(Dense, cutoff=config.initializer_cutoff_factor, **options)


def make_norm(config: Any, dtype: jnp.dtype) -> LayerNorm:
    width, eps = config.hidden_size, config.norm_eps
    return LayerNorm(width, eps=eps, use_bias=config.norm_bias, dtype=dtype)


def output_stddev(config: Any) -> float:
    """Of layers that add to the residual stream, which gets two summands a block."""
    return config.initializer_range / (2.0 * config.num_hidden_layers) ** 0.5


class ModernBertEmbeddings(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.word = Embed(
            config.vocab_size,
            config.hidden_size,
            stddev=config.initializer_range,
            cutoff=config.initializer_cutoff_factor,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = make_norm(config, dtype)
        self.dropout_rate = config.embedding_dropout

    def __call__(self, input_ids: jax.Array, key: Key) -> jax.Array:
        return dropout(self.norm(self.word(input_ids)), self.dropout_rate, key)


class ModernBertAttention(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, N = config.hidden_size, config.num_attention_heads
        if D % (2 * N):
            raise InputError(
                f"hidden_size={D} does not give num_attention_heads={N} heads of an even size, "
                f"which rotary positions need; choose a multiple of {2 * N}"
            )
        dense = make_dense(config, use_bias=config.attention_bias, dtype=dtype, rngs=rngs)
        self.query = dense((D,), (N, D // N), stddev=config.initializer_range)
        self.key = dense((D,), (N, D // N), stddev=config.initializer_range)
        self.value = dense((D,), (N, D // N), stddev=config.initializer_range)
        self.output = dense((N, D // N), (D,), stddev=output_stddev(config))
        self.norm = make_norm(config, dtype)
        self.dropout_rate = config.attention_dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        is_first: jax.Array,
        is_global: jax.Array,
        attend: Attend,
        rotary: jax.Array,
        key: Key,
        queries: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        weights_key, output_key = split_key(key, 2)
        x_BTD = jnp.where(is_first, x_BTD, self.norm(x_BTD))
        q_BTD, q_rotary = x_BTD, rotary
        if queries is not None:
            q_BTD = gather_tokens(x_BTD, queries)
            q_rotary = tokens_at(rotary, queries)
        out_BTNH, weights = attend(
            rotate(self.query(q_BTD), q_rotary),
            rotate(self.key(x_BTD), rotary),
            self.value(x_BTD),
            dropout_rate=self.dropout_rate,
            key=weights_key,
            queries_BP=queries,
            is_global=is_global,
        )
        return dropout(self.output(out_BTNH), self.dropout_rate, output_key), weights


class ModernBertMLP(nnx.Module):
    """GeGLU (Shazeer, 2020): down(activation(gate(x)) * up(x))."""

    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        dense = make_dense(config, use_bias=config.mlp_bias, dtype=dtype, rngs=rngs)
        self.gate = dense((D,), (F,), stddev=config.initializer_range)
        self.up = dense((D,), (F,), stddev=config.initializer_range)
        self.down = dense((F,), (D,), stddev=output_stddev(config))
        self.activation = ACTIVATIONS[config.hidden_activation]
        self.norm = make_norm(config, dtype)
        self.dropout_rate = config.mlp_dropout

    def __call__(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        x_BTD = self.norm(x_BTD)
        hidden_BTF = self.activation(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(dropout(hidden_BTF, self.dropout_rate, key))


class ModernBertBlock(nnx.Module):
    def __init__(self, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention = ModernBertAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = ModernBertMLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        is_first: jax.Array,
        is_global: jax.Array,
        attend: Attend,
        rotary: jax.Array,
        key: Key,
        queries: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`queries` [B, P]: compute these tokens only, which still look at all; then T is P."""
        attention_key, mlp_key = split_key(key, 2)
        out_BTD, weights = self.attention(
            x_BTD, is_first, is_global, attend, rotary, attention_key, queries
        )
        x_BTD = out_BTD + (x_BTD if queries is None else gather_tokens(x_BTD, queries))
        return constrain(x_BTD + self.mlp(x_BTD, mlp_key), "BTD"), weights


class ModernBertEncoder(QueriedEncoder):
    """Embeddings, L blocks stacked on a leading axis and scanned, and the final norm.

    Blocks differ in two ways, both flags that the scan carries along, so that any pattern of
    config.layer_types is one compiled body and one attention a block: a global block widens the
    window to the row and takes the other rotary table, and the first block has no norm before its
    attention. blocks/attention/norm therefore has L - 1 rows, those of the checkpoint.
    `unroll`: blocks in one iteration of the scan, 0 = all.
    `attention`: a name in attention_backends.ATTENDS.
    `remat`: none, full, or dots (REMAT_POLICIES).
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
        attention: str = "xla",
        remat: str = "none",
        unroll: int = 1,
    ):
        L = config.num_hidden_layers
        self.embeddings = ModernBertEmbeddings(config, dtype=dtype, rngs=rngs)
        self.blocks = jax.vmap(
            lambda key: ModernBertBlock(config, dtype=dtype, rngs=nnx.Rngs(params=key))
        )(jax.random.split(rngs.params(), L))
        self.blocks.attention.norm = jax.vmap(lambda _: make_norm(config, dtype))(jnp.arange(1, L))
        self.final_norm = make_norm(config, dtype)
        self.is_global = tuple(kind == GLOBAL for kind in config.layer_types)
        self.thetas = tuple(config.rope_parameters[kind]["rope_theta"] for kind in (LOCAL, GLOBAL))
        self.head_size = config.hidden_size // config.num_attention_heads
        self.radius = config.local_attention // 2
        self.attention = attention
        self.remat = remat
        self.unroll = unroll or L

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
        """The encoder with its final norm; all ids are int32 [B, T].

        Packed rows give `segment_ids` (0 = padding). `token_type_ids` are for other families'
        sake: ModernBERT has none, and what is given has no effect. `queries` [B, P]: the last block
        computes these tokens only, the last hidden state is [B, P, D].
        """
        T, L = input_ids.shape[1], len(self.is_global)
        if position_ids is None and segment_ids is not None:
            position_ids = segment_positions(segment_ids)
        elif position_ids is None:
            position_ids = jnp.arange(T)[None]
        attend = make_attend(
            self.attention,
            T,
            attention_mask,
            segment_ids,
            radius=self.radius,
            weights=output_attentions,
        )
        local, glob = (rotary_table(position_ids, self.head_size, theta) for theta in self.thetas)

        embed_key, blocks_key = split_key(key, 2)
        x_BTD = constrain(self.embeddings(input_ids, embed_key), "BTD")
        block_def, blocks = nnx.split(self.blocks)
        # The norm that the first block has not gets a row that is not used.
        blocks = jax.tree.map(
            lambda a: a if a.shape[0] == L else jnp.pad(a, ((1, 0), (0, 0))), blocks
        )
        keys = None if blocks_key is None else jax.random.split(blocks_key, L)

        def block(x_BTD: jax.Array, layer: tuple, queries: jax.Array | None) -> tuple:
            params, is_first, is_global, layer_key = layer
            rotary = jnp.where(is_global, glob, local)
            return nnx.merge(block_def, params)(
                x_BTD, is_first, is_global, attend, rotary, layer_key, queries
            )

        out = scan_blocks(
            block,
            x_BTD,
            (blocks, np.arange(L) == 0, np.asarray(self.is_global), keys),
            queries,
            remat=self.remat,
            unroll=self.unroll,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
        )
        last = self.final_norm(out.last_hidden_state)
        hidden = None if out.hidden_states is None else (*out.hidden_states[:-1], last)
        return replace(out, last_hidden_state=last, hidden_states=hidden)
