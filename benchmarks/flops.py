"""FLOPs of a workload, counted as the model's mathematics needs them, whoever computes it how."""

import numpy as np

from benchmarks.texts import texts
from benchmarks.workloads import MASKED, Workload
from jaxllm import models
from jaxllm.metrics.flops import training_flops_per_token
from jaxllm.pretrained import hf

HEADS = {
    "mlm": "masked-lm",
    "causal": "causal-lm",
    "classify": "sequence-classification",
    "encode": "base",
}


def per_real_token(workload: Workload) -> float:
    """FLOPs for one token that is not padding: of a training step, or the third that is forward."""
    config = hf.load_config(None, **workload.config())
    head = HEADS[workload.kind]
    lengths = np.array([len(text.ids) for text in texts(workload, 1000, 512)])
    _, abstract = models.module_parts(config, head)
    flops = training_flops_per_token(abstract, config, head, lengths, masked=MASKED)
    return flops / 3 if workload.kind == "encode" else flops
