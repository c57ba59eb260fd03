"""The names of the Llama shape in transformers' checkpoints, and what its configs may say."""

from dataclasses import replace
from typing import Any

from jaxllm.names.attributes import DECODER_REQUIRED, Attributes
from jaxllm.names.table import Module, Table
from jaxllm.names.values import are_numbers, is_above_zero

LAYER_TYPES = ("full_attention", "sliding_attention")
# rope_type -> the numbers that it needs; `factor` follows from the lengths in yarn and longrope.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}
_ROPE_NUMBERS = {
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "low_freq_factor",
    "high_freq_factor",
}
_ROPE_LISTS = ("short_factor", "long_factor")


def problems(attributes: dict[str, Any]) -> list[str]:
    """What is wrong with the attributes that have a structure of their own."""
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        if attributes.get(name):
            found += [f"{name}.{one}" for one in _rope_problems(attributes[name])]
    types = attributes.get("layer_types") or []
    layers = attributes.get("num_hidden_layers", len(types))
    if not set(types) <= set(LAYER_TYPES) or (types and len(types) != layers):
        found.append(f"layer_types={types!r:.80} (implemented: one of {LAYER_TYPES} a layer)")
    return found


def _rope_problems(rope: dict[str, Any]) -> list[str]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        return [f"rope_type={kind!r:.80} (implemented: {', '.join(ROPE_TYPES)})"]
    found = []
    for name, value in rope.items():
        if value is None or name in ("rope_type", "type"):
            continue
        if name == "partial_rotary_factor" and value == 1:
            continue
        if name in _ROPE_NUMBERS:
            if not is_above_zero(value):
                found.append(f"{name}={value!r:.80} (expected a number above 0)")
        elif name in _ROPE_LISTS:
            if not are_numbers(value) or not all(map(is_above_zero, value)):
                found.append(f"{name}={value!r:.80} (expected numbers above 0, one for two rows)")
        elif name != "truncate" or not isinstance(value, bool):
            found.append(f"{name}={value!r:.80} (not implemented)")
    needed = ROPE_TYPES[kind] + (_ROPE_LISTS if kind == "longrope" else ())
    return found + [
        f"{name} is missing, which {kind} needs" for name in needed if not rope.get(name)
    ]


ATTRIBUTES = Attributes(
    implemented=frozenset(
        {
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "initializer_range",
            "rms_norm_eps",
            "attention_dropout",
            "classifier_dropout",
            "tie_word_embeddings",
            "rope_parameters",
            # Of configs before transformers 5, which turns them into rope_parameters.
            "rope_theta",
            "rope_scaling",
        }
    ),
    activations=frozenset({"hidden_act"}),
    required=DECODER_REQUIRED | {"partial_rotary_factor": 1.0},
    harmless=frozenset({"is_decoder"}),  # it always is
    problems=problems,
)
_LAYER = "model.layers.{}"
LLAMA = Table(
    modules=(
        Module("embeddings/word", "model.embed_tokens", "embedding"),
        Module("blocks/attention/norm", f"{_LAYER}.input_layernorm", "rms"),
        Module("blocks/attention/query", f"{_LAYER}.self_attn.q_proj", "dense"),
        Module("blocks/attention/key", f"{_LAYER}.self_attn.k_proj", "dense"),
        Module("blocks/attention/value", f"{_LAYER}.self_attn.v_proj", "dense"),
        Module("blocks/attention/output", f"{_LAYER}.self_attn.o_proj", "dense", inputs=2),
        Module("blocks/attention/query_norm", f"{_LAYER}.self_attn.q_norm", "rms"),
        Module("blocks/attention/key_norm", f"{_LAYER}.self_attn.k_norm", "rms"),
        Module("blocks/mlp/norm", f"{_LAYER}.post_attention_layernorm", "rms"),
        Module("blocks/mlp/gate", f"{_LAYER}.mlp.gate_proj", "dense"),
        Module("blocks/mlp/up", f"{_LAYER}.mlp.up_proj", "dense"),
        Module("blocks/mlp/down", f"{_LAYER}.mlp.down_proj", "dense"),
        Module("final_norm", "model.norm", "rms"),
        Module("lm_head", "lm_head", "dense"),
        Module("score", "score", "dense"),
        Module("qa_outputs", "qa_outputs", "dense"),
    ),
    attributes=ATTRIBUTES.extended(
        implemented={"attention_bias", "mlp_bias"},
        harmless={"pretraining_tp"},  # of a product in parts: the same numbers
    ),
    prefix="model",
    class_prefix="Llama",
    old_names=((r"^transformer\.", "model."),),
    prefixes={"question-answering": "transformer"},
    buffers=r"rotary_emb\.(original_)?inv_freq$",
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    tied_head="embeddings",
    trunk=("embeddings", "blocks", "final_norm"),
)
_WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
MISTRAL = replace(
    LLAMA,
    attributes=ATTRIBUTES.extended(implemented={"sliding_window"}),
    class_prefix="Mistral",
    old_names=(),
    prefixes={},
)
QWEN2 = replace(LLAMA, attributes=ATTRIBUTES.extended(implemented=_WINDOWS), class_prefix="Qwen2")
QWEN3 = replace(
    LLAMA,
    attributes=ATTRIBUTES.extended(implemented=_WINDOWS | {"attention_bias"}),
    class_prefix="Qwen3",
)
