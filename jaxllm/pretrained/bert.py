"""BERT's names: ours, and those of transformers' checkpoints (PyTorch and Flax), in one table."""

from jaxllm.pretrained.names import Family, Module

_LAYER = "bert.encoder.layer.{}"

BERT = Family(
    modules=(
        Module("embeddings/word", "bert.embeddings.word_embeddings", "embedding"),
        Module("embeddings/position", "bert.embeddings.position_embeddings", "embedding"),
        Module("embeddings/token_type", "bert.embeddings.token_type_embeddings", "embedding"),
        Module("embeddings/norm", "bert.embeddings.LayerNorm", "norm"),
        Module("blocks/attention/query", f"{_LAYER}.attention.self.query", "dense"),
        Module("blocks/attention/key", f"{_LAYER}.attention.self.key", "dense"),
        Module("blocks/attention/value", f"{_LAYER}.attention.self.value", "dense"),
        Module("blocks/attention/output", f"{_LAYER}.attention.output.dense", "dense", inputs=2),
        Module("blocks/attention/norm", f"{_LAYER}.attention.output.LayerNorm", "norm"),
        Module("blocks/mlp/up", f"{_LAYER}.intermediate.dense", "dense"),
        Module("blocks/mlp/down", f"{_LAYER}.output.dense", "dense"),
        Module("blocks/mlp/norm", f"{_LAYER}.output.LayerNorm", "norm"),
        Module("pooler", "bert.pooler.dense", "dense"),
        Module("classifier", "classifier", "dense"),
        Module("mlm/dense", "cls.predictions.transform.dense", "dense"),
        Module("mlm/norm", "cls.predictions.transform.LayerNorm", "norm"),
        Module("mlm", "cls.predictions", "bias"),
        # Heads that no module here has: loading leaves them unused, converting carries them over.
        Module("", "cls.seq_relationship", "dense"),
        Module("", "qa_outputs", "dense"),
    ),
    prefix="bert",
    architectures={
        "masked-lm": ("BertForMaskedLM", "mlm"),
        "sequence-classification": ("BertForSequenceClassification", "classifier"),
        "base": ("BertModel", ""),
    },
    # TensorFlow's names, which PyTorch checkpoints of 2018 and 2019 have, bert-base-uncased among
    # them.
    old_names=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    buffers=r"embeddings\.(position_ids|token_type_ids)$",
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    tied_head="mlm",
    trunk=("embeddings", "blocks"),
)
