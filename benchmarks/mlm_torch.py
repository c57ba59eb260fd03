"""The PyTorch side of ``benchmarks.mlm``: transformers' BertForMaskedLM, each text a padded row."""

import json
import os
import time
from typing import Any

import torch
from transformers import BertForMaskedLM

from benchmarks.recipe import Job, serve
from benchmarks.torch_baseline import gradient_norm, train
from jaxllm.throughput import peak_host_memory_bytes


def gate(job: Job) -> dict[str, Any]:
    """Mean loss and gradient norm of the first batch, with dropout off."""
    model = BertForMaskedLM.from_pretrained(job.model, dtype=torch.float32).eval()
    loss = model(**batches(job)[0]).loss
    loss.backward()
    return {"loss": loss.item(), "grad_norm": gradient_norm(model)}


def run(job: Job) -> dict[str, Any]:
    """All epochs; the figures of a result row."""
    began = time.perf_counter()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(job.seed)
    rows = batches(job) * job.recipe.epochs
    model = BertForMaskedLM.from_pretrained(job.model, dtype=torch.float32).train()
    startup_seconds = time.perf_counter() - began
    return {
        **train(model, rows, len(rows), job),
        "startup_seconds": startup_seconds,
        "peak_memory": peak_host_memory_bytes(),
    }


def batches(job: Job) -> list[dict[str, torch.Tensor]]:
    """The texts in their order, each padded to the length of a row."""
    with open(job.train, encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    shape = (len(texts), job.recipe.max_length)
    ids, mask, labels = (torch.full(shape, fill) for fill in (0, 0, -100))
    for row, text in enumerate(texts):
        count = len(text["ids"])
        ids[row, :count] = torch.tensor(text["ids"])
        mask[row, :count] = 1
        labels[row, text["positions"]] = torch.tensor(text["labels"])
    size = job.recipe.batch_size
    return [
        {
            "input_ids": ids[start : start + size],
            "attention_mask": mask[start : start + size],
            "labels": labels[start : start + size],
        }
        for start in range(0, len(texts), size)
    ]


if __name__ == "__main__":
    serve({"gate": gate, "run": run})
