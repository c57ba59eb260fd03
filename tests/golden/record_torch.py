"""Records the torch_* goldens: checkpoints and outputs of PyTorch's transformers classes.

python tests/golden/record_torch.py        # needs the parity extra
"""

from pathlib import Path

import numpy as np
import torch
from example import CONFIG, batch
from transformers import (
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

HERE = Path(__file__).parent


# A window of 2 to either side, shorter than the rows; a layer of each kind.
MODERNBERT = {
    "intermediate_size": 32,
    "layer_types": ["full_attention", "sliding_attention"],
    "local_attention": 4,
    "classifier_pooling": "mean",
    **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
}


def record(name: str, cls: type, outputs: list[str], **options: object) -> None:
    torch.manual_seed(len(name))
    config = cls.config_class(**{**CONFIG, **options})
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():  # every parameter away from its initial value, biases and scales too
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        inputs = batch()
        if cls.config_class is ModernBertConfig:  # it has no token types
            del inputs["token_type_ids"]
        out = model(**{key: torch.tensor(x) for key, x in inputs.items()})
    model.save_pretrained(HERE / name)
    arrays = {key: out[key].numpy() for key in outputs}
    np.savez_compressed(HERE / name / "expected.npz", **inputs, **arrays)


if __name__ == "__main__":
    record("torch_base", BertModel, ["last_hidden_state", "pooler_output"])
    record("torch_sequence_classification", BertForSequenceClassification, ["logits"], num_labels=3)
    record(
        "torch_modernbert",
        ModernBertForSequenceClassification,
        ["logits"],
        num_labels=3,
        **MODERNBERT,
    )
    record(
        "torch_pretraining", BertForPreTraining, ["prediction_logits", "seq_relationship_logits"]
    )
