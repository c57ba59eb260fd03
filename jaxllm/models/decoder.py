"""The decoder that GPT-2 and the Llama shape share: norms before each part, causal attention."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.attention.backends import make_attend
from jaxllm.attention.base import tokens_at
from jaxllm.attention.cache import Cache
from jaxllm.attention.visibility import Visibility, segment_positions
from jaxllm.errors import InputError
from jaxllm.models.blocks import Stack, gather_tokens, scan_blocks
from jaxllm.models.cached import cached_blocks, check_call, empty_cache
from jaxllm.models.compute import Compute
from jaxllm.models.family import Family
from jaxllm.models.outputs import EncoderOutput
from jaxllm.models.spec import Layers
from jaxllm.names.table import Table
from jaxllm.nn.layers import ACTIVATIONS, Key, dropout, split_key
from jaxllm.nn.rotary import Rope, rotate
from jaxllm.nn.sharding import constrain


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder and its heads in numbers.

    Attributes:
        head_size: of the attention; heads times it need not be `hidden_size`.
        max_position_embeddings: rows of the position table, or, with `rope`, what the config says.
        rope: rotary positions; None: a table of positions is added to the embeddings.
        window: places that a token sees, its own included; None = all before it.
        is_global: of each layer, whether it has no window.
        is_gated: down(activation(gate(x)) * up(x)), with SiLU called SwiGLU (Shazeer, 2020).
        rms: norms are RMSNorms.
        qk_norm: queries and keys are normed, head by head, before they are rotated.
        bias, output_bias, mlp_bias: whether queries, keys and values, the attention's output and
            the MLP have one.
        output_stddev: of layers that add to the residual stream.
        is_tied: the output is the word embedding, transposed.
        pad_token_id: the last token of a text that is not this one stands for it; None: unknown.
        classifier_dropout: in the head for tokens.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str
    norm_eps: float
    initializer_range: float
    output_stddev: float
    is_tied: bool
    num_labels: int
    pad_token_id: int | None
    classifier_dropout: float
    rope: Rope | None = None
    window: int | None = None
    is_global: tuple[bool, ...] = ()
    is_gated: bool = False
    rms: bool = False
    qk_norm: bool = False
    bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0

    @property
    def token_dropout(self) -> float:
        return self.classifier_dropout

    @property
    def span_dropout(self) -> float:
        return 0.0

    def layers(self, compute: Compute, rngs: nnx.Rngs) -> Layers:
        """What makes this decoder's layers."""
        return Layers(self.initializer_range, self.norm_eps, compute.dtype, rngs, rms=self.rms)

    @property
    def windows(self) -> list[int | None]:
        """Of each layer, the places that a token sees, its own included; None: all before it."""
        is_global = self.is_global or (False,) * self.num_hidden_layers
        return [None if whole else self.window for whole in is_global]

    def check(self) -> None:
        """Raises InputError for sizes that do not fit each other."""
        N, K = self.num_attention_heads, self.num_key_value_heads
        if N % K:
            raise InputError(
                f"num_attention_heads={N} is not divisible by num_key_value_heads={K}; a head of "
                "keys and values serves a group of as many heads of queries"
            )
        if self.rope is not None and self.head_size % 2:
            raise InputError(
                f"the heads have a size of {self.head_size}, and rotary positions need an even one"
            )


class Embeddings(nnx.Module):
    def __init__(self, spec: DecoderSpec, layers: Layers):
        self.word = layers.embed(spec.vocab_size, spec.hidden_size)
        self.has_positions = spec.rope is None
        if self.has_positions:
            self.position = layers.embed(spec.max_position_embeddings, spec.hidden_size)
        self.dropout_rate = spec.embedding_dropout

    def __call__(self, tokens: jax.Array, position_ids: jax.Array, key: Key) -> jax.Array:
        x_BTD = self.word(tokens)
        if self.has_positions:
            x_BTD = x_BTD + self.position(position_ids)
        return dropout(x_BTD, self.dropout_rate, key)


class Attention(nnx.Module):
    def __init__(self, spec: DecoderSpec, layers: Layers):
        D, H = spec.hidden_size, spec.head_size
        N, K = spec.num_attention_heads, spec.num_key_value_heads
        self.norm = layers.norm(D)
        self.query = layers.dense(D, (N, H), use_bias=spec.bias)
        self.key = layers.dense(D, (K, H), use_bias=spec.bias)
        self.value = layers.dense(D, (K, H), use_bias=spec.bias)
        self.output = layers.dense((N, H), D, use_bias=spec.output_bias, stddev=spec.output_stddev)
        self.has_qk_norm = spec.qk_norm
        if self.has_qk_norm:
            self.query_norm, self.key_norm = layers.norm(H), layers.norm(H)
        self.attention_dropout = spec.attention_dropout
        self.hidden_dropout = spec.hidden_dropout

    def __call__(
        self,
        x_BTD: jax.Array,
        attend: Any,
        rotary: jax.Array | None,
        is_global: jax.Array | None,
        key: Key,
        queries: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        weights_key, output_key = split_key(key, 2)
        x_BTD = self.norm(x_BTD)
        q_BTD, q_rotary = x_BTD, rotary
        if queries is not None:
            q_BTD, attend = gather_tokens(x_BTD, queries), attend.at(queries)
            q_rotary = None if rotary is None else tokens_at(rotary, queries)
        q, k, v = self.query(q_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.has_qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None and q_rotary is not None:
            q, k = rotate(q, q_rotary), rotate(k, rotary)
        out_BTNH, weights = attend(
            q, k, v, dropout_rate=self.attention_dropout, key=weights_key, is_global=is_global
        )
        return dropout(self.output(out_BTNH), self.hidden_dropout, output_key), weights


class MLP(nnx.Module):
    def __init__(self, spec: DecoderSpec, layers: Layers):
        D, F, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.norm = layers.norm(D)
        self.is_gated = spec.is_gated
        if self.is_gated:
            self.gate = layers.dense(D, F, use_bias=bias)
        self.up = layers.dense(D, F, use_bias=bias)
        self.down = layers.dense(F, D, use_bias=bias, stddev=spec.output_stddev)
        self.activation = ACTIVATIONS[spec.hidden_act]
        self.hidden_dropout = spec.hidden_dropout

    def __call__(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        x_BTD = self.norm(x_BTD)
        up_BTF = self.up(x_BTD)
        hidden_BTF = self.activation(self.gate(x_BTD)) * up_BTF if self.is_gated else None
        out_BTD = self.down(self.activation(up_BTF) if hidden_BTF is None else hidden_BTF)
        return dropout(out_BTD, self.hidden_dropout, key)


class Block(nnx.Module):
    def __init__(self, spec: DecoderSpec, layers: Layers):
        self.attention, self.mlp = Attention(spec, layers), MLP(spec, layers)

    def __call__(
        self,
        x_BTD: jax.Array,
        attend: Any,
        rotary: jax.Array | None,
        is_global: jax.Array | None,
        key: Key,
        queries: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """`queries` [B, P]: compute these tokens only, which still look at all; then T is P."""
        attention_key, mlp_key = split_key(key, 2)
        out_BTD, weights = self.attention(x_BTD, attend, rotary, is_global, attention_key, queries)
        x_BTD = out_BTD + (x_BTD if queries is None else gather_tokens(x_BTD, queries))
        return constrain(x_BTD + self.mlp(x_BTD, mlp_key), "BTD"), weights


class Decoder(Stack):
    """Embeddings, L blocks stacked on a leading axis and scanned, and the final norm."""

    def __init__(self, spec: DecoderSpec, compute: Compute, rngs: nnx.Rngs):
        spec.check()
        self.spec, self.compute = spec, compute
        layers = spec.layers(compute, rngs)
        self.embeddings = Embeddings(spec, layers)
        keys = jax.random.split(rngs.params(), spec.num_hidden_layers)
        self.blocks = jax.vmap(lambda key: Block(spec, layers.from_key(key)))(keys)
        self.final_norm = layers.norm(spec.hidden_size)

    def empty_cache(self, rows: int, places: int) -> Cache:
        """A cache for `rows` texts of at most `places` tokens."""
        K, H = self.spec.num_key_value_heads, self.spec.head_size
        return empty_cache(self.blocks, rows, places, K, H, self.compute.dtype)

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
        """The decoder with its final norm; all ids are int32 [B, T], `tokens` may be embeddings
        [B, T, D], `attention_mask` as in `Visibility.of_rows`.

        Packed rows give `segment_ids` (0 = padding); a token sees those before it in its segment.
        `position_ids` are by default 0, 1, 2, …, in each segment, whatever the mask, as in
        transformers. `token_type_ids` are for other families' sake: what is given has no effect.
        `queries` [B, P]: the last block computes these tokens only, the last hidden state is
        [B, P, D].

        With a `cache` the tokens go on where it ends: they see what it holds, and themselves; the
        mask [B, T] is theirs alone, and the output has the cache with them in it.
        """
        T, spec = tokens.shape[1], self.spec
        if position_ids is None:
            if segment_ids is not None:
                position_ids = jnp.where(segment_ids > 0, segment_positions(segment_ids), 0)
            else:
                position_ids = jnp.arange(T, dtype=jnp.int32)[None]
                position_ids = position_ids + (0 if cache is None else cache.length)
            if spec.rope is None and T > spec.max_position_embeddings and segment_ids is None:
                raise InputError(
                    f"the batch has {T} tokens a row, the model has "
                    f"{spec.max_position_embeddings} positions; truncate or split the rows"
                )
        rotary = None if spec.rope is None else spec.rope.table(position_ids)
        embed_key, blocks_key = split_key(key, 2)
        x_BTD = constrain(self.embeddings(tokens, position_ids, embed_key), "BTD")
        if cache is not None:
            check_call(
                segment_ids=segment_ids,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )

            def one(module: Block, x_BTD: jax.Array, attend: Any) -> jax.Array:
                return module(x_BTD, attend, rotary, None, None)[0]

            windows = spec.windows
            x_BTD, cache = cached_blocks(self.blocks, x_BTD, cache, attention_mask, windows, one)
            x_BTD = x_BTD if queries is None else gather_tokens(x_BTD, queries)
            return EncoderOutput(self.final_norm(x_BTD), cache=cache)

        window = None if spec.window is None else (spec.window - 1, 0)
        visibility = Visibility.of_rows(T, attention_mask, segment_ids, causal=True, window=window)
        attend = make_attend(self.compute.attention, visibility, weights=output_attentions)
        graphdef, blocks = nnx.split(self.blocks)
        L = spec.num_hidden_layers
        keys = None if blocks_key is None else jax.random.split(blocks_key, L)
        is_global = np.asarray(spec.is_global) if any(spec.is_global) else None

        def block(x_BTD: jax.Array, layer: tuple, queries: jax.Array | None) -> tuple:
            params, is_global, layer_key = layer
            return nnx.merge(graphdef, params)(x_BTD, attend, rotary, is_global, layer_key, queries)

        out = scan_blocks(
            block,
            x_BTD,
            (blocks, is_global, keys),
            queries,
            self.compute,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
        )
        last = self.final_norm(out.last_hidden_state)
        hidden = None if out.hidden_states is None else (*out.hidden_states[:-1], last)
        return replace(out, last_hidden_state=last, hidden_states=hidden)


def decoder_family(
    spec: Callable[[Any], DecoderSpec],
    heads: Mapping[str, Callable[..., nnx.Module]],
    table: Table,
    *,
    ids: Mapping[str, str],
) -> Family:
    """A family whose stack is `Decoder`. `ids`: of its tables beside the words', see `Family`."""

    return Family(
        spec,
        Decoder,
        heads,
        max_tokens=lambda config: config.max_position_embeddings,
        windows=lambda config: [window or math.inf for window in spec(config).windows],
        ids={"input_ids": "vocab_size", **ids},
        table=table,
    )
