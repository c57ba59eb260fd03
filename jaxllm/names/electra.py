"""ELECTRA's names, of generators and discriminators. Its sequence summary is a pooler here."""

from jaxllm.names.bert import ATTRIBUTES, encoder_modules
from jaxllm.names.table import Module, Table

ELECTRA = Table(
    modules=(
        *encoder_modules("electra"),
        Module("embeddings/project", "electra.embeddings_project", "dense"),
        Module("pooler", "sequence_summary.summary", "dense"),
        Module("classifier", "classifier", "dense"),
        Module("classification/dense", "classifier.dense", "dense"),
        Module("classification/output", "classifier.out_proj", "dense"),
        Module("qa_outputs", "qa_outputs", "dense"),
        Module("mlm/dense", "generator_predictions.dense", "dense"),
        Module("mlm/norm", "generator_predictions.LayerNorm", "norm"),
        Module("mlm", "generator_lm_head", "bias"),
        Module("discriminator/dense", "discriminator_predictions.dense", "dense"),
        Module("discriminator/output", "discriminator_predictions.dense_prediction", "dense"),
    ),
    attributes=ATTRIBUTES.extended(
        implemented={"embedding_size", "summary_last_dropout"},
        activations={"summary_activation"},
        required={"summary_type": "first", "summary_use_proj": True},
    ),
    prefix="electra",
    class_prefix="Electra",
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
)
