"""BERT's names: ours, and those of transformers' checkpoints (PyTorch and Flax), in one table."""

from jaxllm.names.attributes import ENCODER_REQUIRED, Attributes
from jaxllm.names.table import Module, Table


def encoder_modules(prefix: str) -> tuple[Module, ...]:
    """The encoder and its pooler, which later families of transformers call as BERT's."""
    embeddings, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{}}"
    return (
        Module("embeddings/word", f"{embeddings}.word_embeddings", "embedding"),
        Module("embeddings/position", f"{embeddings}.position_embeddings", "embedding"),
        Module("embeddings/token_type", f"{embeddings}.token_type_embeddings", "embedding"),
        Module("embeddings/norm", f"{embeddings}.LayerNorm", "norm"),
        Module("blocks/attention/query", f"{layer}.attention.self.query", "dense"),
        Module("blocks/attention/key", f"{layer}.attention.self.key", "dense"),
        Module("blocks/attention/value", f"{layer}.attention.self.value", "dense"),
        Module("blocks/attention/output", f"{layer}.attention.output.dense", "dense", inputs=2),
        Module("blocks/attention/norm", f"{layer}.attention.output.LayerNorm", "norm"),
        Module("blocks/mlp/up", f"{layer}.intermediate.dense", "dense"),
        Module("blocks/mlp/down", f"{layer}.output.dense", "dense"),
        Module("blocks/mlp/norm", f"{layer}.output.LayerNorm", "norm"),
    )


ATTRIBUTES = Attributes(
    implemented=frozenset(
        {
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "max_position_embeddings",
            "type_vocab_size",
            "initializer_range",
            "layer_norm_eps",
            "classifier_dropout",
            "is_decoder",
        }
    ),
    activations=frozenset({"hidden_act"}),
    required={name: x for name, x in ENCODER_REQUIRED.items() if name != "is_decoder"},
)
BERT = Table(
    modules=(
        *encoder_modules("bert"),
        Module("pooler", "bert.pooler.dense", "dense"),
        Module("classifier", "classifier", "dense"),
        Module("qa_outputs", "qa_outputs", "dense"),
        Module("next_sentence", "cls.seq_relationship", "dense"),
        Module("mlm/dense", "cls.predictions.transform.dense", "dense"),
        Module("mlm/norm", "cls.predictions.transform.LayerNorm", "norm"),
        Module("mlm", "cls.predictions", "bias"),
    ),
    attributes=ATTRIBUTES.extended(
        required={"directionality": "bidi", "pooler_type": "first_token_transform"},
        harmless={
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
        },
    ),
    prefix="bert",
    class_prefix="Bert",
    class_names={"causal-lm": "BertLMHeadModel"},
    # TensorFlow's names, which PyTorch checkpoints of 2018 and 2019 have, bert-base-uncased among
    # them.
    old_names=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
