"""A decoder of two layers for the tests: what a new family takes is this file, its table, one line.

Pre-norm blocks, rotary positions, grouped heads, a tied output; the numbers come from transformers'
LlamaConfig. It is no family of jaxllm.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import LlamaConfig

from jaxllm.attention.backends import make_attend
from jaxllm.attention.base import tokens_at
from jaxllm.attention.visibility import Visibility, segment_positions
from jaxllm.models import heads
from jaxllm.models.blocks import Stack, gather_tokens, scan_blocks
from jaxllm.models.family import Family
from jaxllm.models.spec import Layers
from jaxllm.names.attributes import Attributes
from jaxllm.names.table import Module, Table
from jaxllm.nn.rotary import rotary_table, rotate
from jaxllm.nn.sharding import constrain


@dataclass(frozen=True)
class Spec:
    """A decoder in numbers."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    initializer_range: float
    num_labels: int

    def layers(self, compute: Any, rngs: nnx.Rngs) -> Layers:
        return Layers(self.initializer_range, 1e-6, compute.dtype, rngs)


def spec(config: Any) -> Spec:
    return Spec(**{name: getattr(config, name) for name in Spec.__dataclass_fields__})


class Embeddings(nnx.Module):
    def __init__(self, spec: Spec, layers: Layers):
        self.word = layers.embed(spec.vocab_size, spec.hidden_size)


class Attention(nnx.Module):
    def __init__(self, spec: Spec, layers: Layers):
        D, N, K = spec.hidden_size, spec.num_attention_heads, spec.num_key_value_heads
        H = D // N
        self.norm = layers.norm(D)
        self.query = layers.dense(D, (N, H))
        self.key = layers.dense(D, (K, H))
        self.value = layers.dense(D, (K, H))
        self.output = layers.dense((N, H), D)

    def __call__(self, x_BTD, attend, rotary, queries):
        x_BTD = self.norm(x_BTD)
        q_BTD, q_rotary = x_BTD, rotary
        if queries is not None:
            q_BTD, attend = gather_tokens(x_BTD, queries), attend.at(queries)
            q_rotary = tokens_at(rotary, queries)
        key = rotate(self.key(x_BTD), rotary)
        out, weights = attend(rotate(self.query(q_BTD), q_rotary), key, self.value(x_BTD))
        return self.output(out), weights


class MLP(nnx.Module):
    def __init__(self, spec: Spec, layers: Layers):
        self.norm = layers.norm(spec.hidden_size)
        self.up = layers.dense(spec.hidden_size, spec.intermediate_size)
        self.down = layers.dense(spec.intermediate_size, spec.hidden_size)

    def __call__(self, x_BTD):
        return self.down(jax.nn.silu(self.up(self.norm(x_BTD))))


class Block(nnx.Module):
    def __init__(self, spec: Spec, layers: Layers):
        self.attention, self.mlp = Attention(spec, layers), MLP(spec, layers)

    def __call__(self, x_BTD, attend, rotary, queries):
        out, weights = self.attention(x_BTD, attend, rotary, queries)
        x_BTD = out + (x_BTD if queries is None else gather_tokens(x_BTD, queries))
        return constrain(x_BTD + self.mlp(x_BTD), "BTD"), weights


class Decoder(Stack):
    def __init__(self, spec: Spec, compute, rngs: nnx.Rngs):
        self.spec, self.compute = spec, compute
        layers = spec.layers(compute, rngs)
        self.embeddings = Embeddings(spec, layers)
        keys = jax.random.split(rngs.params(), spec.num_hidden_layers)
        self.blocks = jax.vmap(lambda key: Block(spec, layers.from_key(key)))(keys)

    def encode(
        self,
        input_ids,
        *,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        segment_ids=None,
        queries=None,
        key=None,
        output_hidden_states=False,
        output_attentions=False,
    ):
        T, spec = input_ids.shape[1], self.spec
        if position_ids is None:
            position_ids = jnp.arange(T)[None]
            if segment_ids is not None:
                position_ids = segment_positions(segment_ids)
        visibility = Visibility.of_rows(T, attention_mask, segment_ids, causal=True)
        attend = make_attend(self.compute.attention, visibility, weights=output_attentions)
        rotary = rotary_table(position_ids, spec.hidden_size // spec.num_attention_heads, 1e4)
        graphdef, blocks = nnx.split(self.blocks)

        def block(x_BTD, params, queries):
            return nnx.merge(graphdef, params)(x_BTD, attend, rotary, queries)

        return scan_blocks(
            block,
            constrain(self.embeddings.word(input_ids), "BTD"),
            blocks,
            queries,
            self.compute,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
        )


class CausalLM(heads.VocabularyHead):
    """The word embedding, transposed, after a norm."""

    def __init__(self, spec: Spec, layers: Layers):
        self.final_norm = layers.norm(spec.hidden_size)

    def scores(self, x, word):
        return word.attend(self.final_norm(x))


_LAYER = "model.layers.{}"
NAMES = Table(
    modules=(
        Module("embeddings/word", "model.embed_tokens", "embedding"),
        Module("blocks/attention/norm", f"{_LAYER}.input_layernorm", "norm"),
        Module("blocks/attention/query", f"{_LAYER}.self_attn.q_proj", "dense"),
        Module("blocks/attention/key", f"{_LAYER}.self_attn.k_proj", "dense"),
        Module("blocks/attention/value", f"{_LAYER}.self_attn.v_proj", "dense"),
        Module("blocks/attention/output", f"{_LAYER}.self_attn.o_proj", "dense", inputs=2),
        Module("blocks/mlp/norm", f"{_LAYER}.post_attention_layernorm", "norm"),
        Module("blocks/mlp/up", f"{_LAYER}.mlp.up_proj", "dense"),
        Module("blocks/mlp/down", f"{_LAYER}.mlp.down_proj", "dense"),
        Module("final_norm", "lm_norm", "norm"),
    ),
    attributes=Attributes(
        implemented=frozenset({*Spec.__dataclass_fields__, "max_position_embeddings"}),
        activations=frozenset(),
        harmless=frozenset(LlamaConfig().to_dict()),
    ),
    prefix="model",
    class_prefix="Toy",
)
TOY = Family(
    spec,
    Decoder,
    {"base": heads.Bare, "causal-lm": CausalLM},
    max_tokens=lambda config: config.max_position_embeddings,
    windows=lambda config: [config.max_position_embeddings] * config.num_hidden_layers,
    ids={"input_ids": "vocab_size"},
    table=NAMES,
)
