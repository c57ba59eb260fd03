"""GPT-2's names in transformers' checkpoints, and which config attributes are implemented."""

from jaxllm.names.attributes import DECODER_REQUIRED, Attributes
from jaxllm.names.table import Module, Table

ATTRIBUTES = Attributes(
    implemented=frozenset(
        {
            "vocab_size",
            "n_positions",
            "n_embd",
            "n_layer",
            "n_head",
            "n_inner",
            "embd_pdrop",
            "attn_pdrop",
            "resid_pdrop",
            "classifier_dropout",
            "hidden_dropout",
            "layer_norm_epsilon",
            "initializer_range",
            "tie_word_embeddings",
            # What transformers calls them, too.
            "max_position_embeddings",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
        }
    ),
    activations=frozenset({"activation_function"}),
    required=DECODER_REQUIRED
    | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    harmless=frozenset(
        {
            "is_decoder",  # it always is
            "n_ctx",
            "reorder_and_upcast_attn",  # how it computes in float16, not what
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
)
_LAYER = "transformer.h.{}"
_QKV = f"{_LAYER}.attn.c_attn"

GPT2 = Table(
    modules=(
        Module("embeddings/word", "transformer.wte", "embedding"),
        Module("embeddings/position", "transformer.wpe", "embedding"),
        Module("blocks/attention/norm", f"{_LAYER}.ln_1", "norm"),
        Module("blocks/attention/query", _QKV, "conv1d", part=(0, 3)),
        Module("blocks/attention/key", _QKV, "conv1d", part=(1, 3)),
        Module("blocks/attention/value", _QKV, "conv1d", part=(2, 3)),
        Module("blocks/attention/output", f"{_LAYER}.attn.c_proj", "conv1d", inputs=2),
        Module("blocks/mlp/norm", f"{_LAYER}.ln_2", "norm"),
        Module("blocks/mlp/up", f"{_LAYER}.mlp.c_fc", "conv1d"),
        Module("blocks/mlp/down", f"{_LAYER}.mlp.c_proj", "conv1d"),
        Module("final_norm", "transformer.ln_f", "norm"),
        Module("lm_head", "lm_head", "dense"),
        Module("score", "score", "dense"),
        Module("classifier", "classifier", "dense"),
        Module("qa_outputs", "qa_outputs", "dense"),
    ),
    attributes=ATTRIBUTES,
    prefix="transformer",
    class_prefix="GPT2",
    class_names={"causal-lm": "GPT2LMHeadModel"},
    buffers=r"\.attn\.(masked_)?bias$",
    tied={"lm_head.weight": "transformer.wte.weight"},
    tied_head="embeddings",
    trunk=("embeddings", "blocks", "final_norm"),
)
