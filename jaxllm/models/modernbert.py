"""ModernBERT (Warner et al., 2024): the encoder.

Pre-norm blocks without biases, rotary positions, GeGLU, and attention that alternates between all
tokens (global) and a window around each (local). Equal in numbers to transformers' PyTorch class.
`config` is a transformers ModernBertConfig.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.attention.backends import make_attend
from jaxllm.attention.base import Attend, tokens_at
from jaxllm.attention.visibility import Visibility, segment_positions
from jaxllm.errors import InputError
from jaxllm.models.blocks import Stack, gather_tokens, scan_blocks
from jaxllm.models.compute import Compute
from jaxllm.models.outputs import EncoderOutput
from jaxllm.models.spec import Layers
from jaxllm.nn.layers import ACTIVATIONS, Key, dropout, split_key
from jaxllm.nn.rotary import rotary_table, rotate
from jaxllm.nn.sharding import constrain

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # names in config.layer_types


@dataclass(frozen=True)
class ModernBertSpec:
    """The encoder and its heads in numbers, under the names of transformers' ModernBertConfig.

    Attributes:
        is_global: of each layer, whether its tokens see all others.
        window: places that a token of a local layer sees to its left and to its right.
        thetas: of the rotary positions of local and of global layers.
        cutoff: of the truncated normal draws of weights.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_activation: str
    is_global: tuple[bool, ...]
    window: tuple[int, int]
    thetas: tuple[float, float]
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    norm_eps: float
    embedding_dropout: float
    attention_dropout: float
    mlp_dropout: float
    classifier_dropout: float
    classifier_bias: bool
    classifier_activation: str
    classifier_pooling: str
    decoder_bias: bool
    num_labels: int
    initializer_range: float
    cutoff: float

    @property
    def output_stddev(self) -> float:
        """Of layers that add to the residual stream, which gets two summands a block."""
        return self.initializer_range / (2.0 * self.num_hidden_layers) ** 0.5

    def layers(self, compute: Compute, rngs: nnx.Rngs) -> Layers:
        """What makes this encoder's layers."""
        return Layers(
            self.initializer_range,
            self.norm_eps,
            compute.dtype,
            rngs,
            cutoff=self.cutoff,
            norm_bias=self.norm_bias,
        )


def spec(config: Any) -> ModernBertSpec:
    radius = config.local_attention // 2
    own = {
        "is_global": tuple(kind == GLOBAL for kind in config.layer_types),
        "window": (radius, radius),
        "thetas": tuple(config.rope_parameters[kind]["rope_theta"] for kind in (LOCAL, GLOBAL)),
        "cutoff": config.initializer_cutoff_factor,
    }
    names = ModernBertSpec.__dataclass_fields__.keys() - own
    return ModernBertSpec(**{name: getattr(config, name) for name in names}, **own)


def windows(config: Any) -> list[float]:
    """See `models.windows`."""
    return [math.inf if k == GLOBAL else config.local_attention for k in config.layer_types]


class ModernBertEmbeddings(nnx.Module):
    def __init__(self, spec: ModernBertSpec, layers: Layers):
        self.word = layers.embed(spec.vocab_size, spec.hidden_size)
        self.norm = layers.norm(spec.hidden_size)
        self.dropout_rate = spec.embedding_dropout

    def __call__(self, tokens: jax.Array, key: Key) -> jax.Array:
        return dropout(self.norm(self.word(tokens)), self.dropout_rate, key)


class ModernBertAttention(nnx.Module):
    def __init__(self, spec: ModernBertSpec, layers: Layers):
        D, N = spec.hidden_size, spec.num_attention_heads
        if D % (2 * N):
            raise InputError(
                f"hidden_size={D} does not give num_attention_heads={N} heads of an even size, "
                f"which rotary positions need; choose a multiple of {2 * N}"
            )
        heads, bias = (N, D // N), spec.attention_bias
        self.query = layers.dense(D, heads, use_bias=bias)
        self.key = layers.dense(D, heads, use_bias=bias)
        self.value = layers.dense(D, heads, use_bias=bias)
        self.output = layers.dense(heads, D, use_bias=bias, stddev=spec.output_stddev)
        self.norm = layers.norm(D)
        self.dropout_rate = spec.attention_dropout

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
            q_rotary, attend = tokens_at(rotary, queries), attend.at(queries)
        out_BTNH, weights = attend(
            rotate(self.query(q_BTD), q_rotary),
            rotate(self.key(x_BTD), rotary),
            self.value(x_BTD),
            dropout_rate=self.dropout_rate,
            key=weights_key,
            is_global=is_global,
        )
        return dropout(self.output(out_BTNH), self.dropout_rate, output_key), weights


class ModernBertMLP(nnx.Module):
    """GeGLU (Shazeer, 2020): down(activation(gate(x)) * up(x))."""

    def __init__(self, spec: ModernBertSpec, layers: Layers):
        D, F, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate = layers.dense(D, F, use_bias=bias)
        self.up = layers.dense(D, F, use_bias=bias)
        self.down = layers.dense(F, D, use_bias=bias, stddev=spec.output_stddev)
        self.activation = ACTIVATIONS[spec.hidden_activation]
        self.norm = layers.norm(D)
        self.dropout_rate = spec.mlp_dropout

    def __call__(self, x_BTD: jax.Array, key: Key) -> jax.Array:
        x_BTD = self.norm(x_BTD)
        hidden_BTF = self.activation(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(dropout(hidden_BTF, self.dropout_rate, key))


class ModernBertBlock(nnx.Module):
    def __init__(self, spec: ModernBertSpec, layers: Layers):
        self.attention = ModernBertAttention(spec, layers)
        self.mlp = ModernBertMLP(spec, layers)

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


class ModernBertEncoder(Stack):
    """Embeddings, L blocks stacked on a leading axis and scanned, and the final norm.

    Blocks differ in two ways, both flags that the scan carries along, so that any pattern of
    config.layer_types is one compiled body and one attention a block: a global block widens the
    window to the row and takes the other rotary table, and the first block has no norm before its
    attention. blocks/attention/norm therefore has L - 1 rows, those of the checkpoint.
    """

    def __init__(self, spec: ModernBertSpec, compute: Compute, rngs: nnx.Rngs):
        self.spec, self.compute = spec, compute
        L, D = spec.num_hidden_layers, spec.hidden_size
        layers = spec.layers(compute, rngs)
        self.embeddings = ModernBertEmbeddings(spec, layers)
        self.blocks = jax.vmap(lambda key: ModernBertBlock(spec, layers.from_key(key)))(
            jax.random.split(rngs.params(), L)
        )
        self.blocks.attention.norm = jax.vmap(lambda _: layers.norm(D))(jnp.arange(1, L))
        self.final_norm = layers.norm(D)

    def encode(
        self,
        tokens: jax.Array,
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
        """The encoder with its final norm; all ids are int32 [B, T], `tokens` may be embeddings
        [B, T, D], `attention_mask` as in `Visibility.of_rows`.

        Packed rows give `segment_ids` (0 = padding). `token_type_ids` are for other families'
        sake: ModernBERT has none, and what is given has no effect. `queries` [B, P]: the last block
        computes these tokens only, the last hidden state is [B, P, D].
        """
        spec = self.spec
        T, L = tokens.shape[1], spec.num_hidden_layers
        if position_ids is None and segment_ids is not None:
            position_ids = segment_positions(segment_ids)
        elif position_ids is None:
            position_ids = jnp.arange(T)[None]
        visibility = Visibility.of_rows(T, attention_mask, segment_ids, window=spec.window)
        attend = make_attend(self.compute.attention, visibility, weights=output_attentions)
        head_size = spec.hidden_size // spec.num_attention_heads
        local, glob = (rotary_table(position_ids, head_size, theta) for theta in spec.thetas)

        embed_key, blocks_key = split_key(key, 2)
        x_BTD = constrain(self.embeddings(tokens, embed_key), "BTD")
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
            (blocks, np.arange(L) == 0, np.asarray(spec.is_global), keys),
            queries,
            self.compute,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
        )
        last = self.final_norm(out.last_hidden_state)
        hidden = None if out.hidden_states is None else (*out.hidden_states[:-1], last)
        return replace(out, last_hidden_state=last, hidden_states=hidden)
