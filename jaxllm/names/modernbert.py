"""ModernBERT's names in transformers' checkpoints, and which config attributes are implemented."""

from typing import Any

from jaxllm.names.attributes import Attributes
from jaxllm.names.table import Module, Table
from jaxllm.names.values import is_above_zero

# What the modules read, or what is checked below.
IMPLEMENTED = {
    "attention_bias",
    "attention_dropout",
    "classifier_bias",
    "classifier_dropout",
    "classifier_pooling",
    "decoder_bias",
    "embedding_dropout",
    "hidden_size",
    "initializer_cutoff_factor",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "local_attention",
    "mlp_bias",
    "mlp_dropout",
    "norm_bias",
    "norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "rope_parameters",
    "vocab_size",
    # Of configs before transformers 5, which turns them into layer_types and rope_parameters.
    "global_attn_every_n_layers",
    "global_rope_theta",
    "local_rope_theta",
}
# Attributes with one value that is implemented.
REQUIRED: dict[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "position_embedding_type": "absolute",  # in configs on the Hub; never read
}
# How transformers computes, not what; the last three are in configs on the Hub and never read.
HARMLESS = {
    "deterministic_flash_attn",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "max_position_embeddings",
    "layer_norm_eps",
}
LAYER_TYPES = ("full_attention", "sliding_attention")


def problems(attributes: dict[str, Any]) -> list[str]:
    """What is wrong with the attributes that have a structure of their own."""
    found = []
    types = attributes.get("layer_types") or []
    layers = attributes.get("num_hidden_layers", len(types))
    if not set(types) <= set(LAYER_TYPES) or (types and len(types) != layers):
        found.append(f"layer_types={types!r} (implemented: one of {LAYER_TYPES} for each layer)")
    for kind, rope in (attributes.get("rope_parameters") or {}).items():
        if (
            kind not in LAYER_TYPES
            or not isinstance(rope, dict)
            or not rope.keys() <= {"rope_type", "rope_theta"}
            or rope.get("rope_type", "default") != "default"
        ):
            found.append(f"rope_parameters.{kind}={rope!r} (implemented: rope_type 'default')")
        elif not is_above_zero(rope.get("rope_theta", 1.0)):
            found.append(f"rope_parameters.{kind}={rope!r} (implemented: a rope_theta above 0)")
    return found


ATTRIBUTES = Attributes(
    implemented=frozenset(IMPLEMENTED),
    activations=frozenset({"hidden_activation", "classifier_activation"}),
    required=REQUIRED,
    harmless=frozenset(HARMLESS),
    problems=problems,
)
_LAYER = "model.layers.{}"

MODERNBERT = Table(
    modules=(
        Module("embeddings/word", "model.embeddings.tok_embeddings", "embedding"),
        Module("embeddings/norm", "model.embeddings.norm", "norm"),
        Module("blocks/attention/norm", f"{_LAYER}.attn_norm", "norm", first=1),
        Module("blocks/attention/query", f"{_LAYER}.attn.Wqkv", "dense", part=(0, 3)),
        Module("blocks/attention/key", f"{_LAYER}.attn.Wqkv", "dense", part=(1, 3)),
        Module("blocks/attention/value", f"{_LAYER}.attn.Wqkv", "dense", part=(2, 3)),
        Module("blocks/attention/output", f"{_LAYER}.attn.Wo", "dense", inputs=2),
        Module("blocks/mlp/norm", f"{_LAYER}.mlp_norm", "norm"),
        Module("blocks/mlp/gate", f"{_LAYER}.mlp.Wi", "dense", part=(0, 2)),
        Module("blocks/mlp/up", f"{_LAYER}.mlp.Wi", "dense", part=(1, 2)),
        Module("blocks/mlp/down", f"{_LAYER}.mlp.Wo", "dense"),
        Module("final_norm", "model.final_norm", "norm"),
        Module("head/dense", "head.dense", "dense"),
        Module("head/norm", "head.norm", "norm"),
        Module("classifier", "classifier", "dense"),
        Module("decoder", "decoder", "bias"),
    ),
    attributes=ATTRIBUTES,
    prefix="model",
    class_prefix="ModernBert",
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    tied_head="decoder",
    trunk=("embeddings", "blocks", "final_norm"),
)
