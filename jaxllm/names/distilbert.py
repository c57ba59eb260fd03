"""DistilBERT's names. What transformers calls its pre_classifier is a pooler here."""

from jaxllm.names.attributes import ENCODER_REQUIRED, Attributes
from jaxllm.names.table import Module, Table

_LAYER = "distilbert.transformer.layer.{}"

DISTILBERT = Table(
    modules=(
        Module("embeddings/word", "distilbert.embeddings.word_embeddings", "embedding"),
        Module("embeddings/position", "distilbert.embeddings.position_embeddings", "embedding"),
        Module("embeddings/norm", "distilbert.embeddings.LayerNorm", "norm"),
        Module("blocks/attention/query", f"{_LAYER}.attention.q_lin", "dense"),
        Module("blocks/attention/key", f"{_LAYER}.attention.k_lin", "dense"),
        Module("blocks/attention/value", f"{_LAYER}.attention.v_lin", "dense"),
        Module("blocks/attention/output", f"{_LAYER}.attention.out_lin", "dense", inputs=2),
        Module("blocks/attention/norm", f"{_LAYER}.sa_layer_norm", "norm"),
        Module("blocks/mlp/up", f"{_LAYER}.ffn.lin1", "dense"),
        Module("blocks/mlp/down", f"{_LAYER}.ffn.lin2", "dense"),
        Module("blocks/mlp/norm", f"{_LAYER}.output_layer_norm", "norm"),
        Module("pooler", "pre_classifier", "dense"),
        Module("classifier", "classifier", "dense"),
        Module("qa_outputs", "qa_outputs", "dense"),
        Module("mlm/dense", "vocab_transform", "dense"),
        Module("mlm/norm", "vocab_layer_norm", "norm"),
        Module("mlm", "vocab_projector", "bias"),
    ),
    attributes=Attributes(
        implemented=frozenset(
            {
                "vocab_size",
                "max_position_embeddings",
                "n_layers",
                "n_heads",
                "dim",
                "hidden_dim",
                "dropout",
                "attention_dropout",
                "initializer_range",
                "qa_dropout",
                "seq_classif_dropout",
            }
        ),
        activations=frozenset({"activation"}),
        # Sinusoids would be left as they are in training.
        required={**ENCODER_REQUIRED, "sinusoidal_pos_embds": False},
        harmless=frozenset({"tie_weights_"}),
    ),
    prefix="distilbert",
    class_prefix="DistilBert",
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
)
