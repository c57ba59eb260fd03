"""RoBERTa's and XLM-RoBERTa's names. Their tensors are called alike, `roberta.` in front."""

from dataclasses import replace

from jaxllm.names.bert import ATTRIBUTES, encoder_modules
from jaxllm.names.table import Module, Table

ROBERTA = Table(
    modules=(
        *encoder_modules("roberta"),
        Module("pooler", "roberta.pooler.dense", "dense"),
        Module("classifier", "classifier", "dense"),
        Module("classification/dense", "classifier.dense", "dense"),
        Module("classification/output", "classifier.out_proj", "dense"),
        Module("qa_outputs", "qa_outputs", "dense"),
        Module("mlm/dense", "lm_head.dense", "dense"),
        Module("mlm/norm", "lm_head.layer_norm", "norm"),
        Module("mlm", "lm_head", "bias"),
    ),
    attributes=ATTRIBUTES,
    prefix="roberta",
    class_prefix="Roberta",
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
)
XLM_ROBERTA = replace(ROBERTA, class_prefix="XLMRoberta")
