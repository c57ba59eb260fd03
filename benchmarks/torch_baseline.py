"""The PyTorch side of ``benchmarks.finetune``: a plain loop, as transformers' Trainer runs it.

Random order, each batch padded to its longest sentence, AdamW, dropout as in the checkpoint,
the attention that transformers chooses by itself; bfloat16 means autocast, as Trainer's `bf16`.
"""

import itertools
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from benchmarks.recipe import Job, Recipe, Timer, burn_in_steps, serve, warmup_steps
from benchmarks.step_torch import gradient_norm
from benchmarks.torch_tasks import TASKS, Task
from jaxllm.metrics.throughput import peak_host_memory_bytes

Batch = dict[str, torch.Tensor]


def gate(job: Job) -> dict[str, Any]:
    """Mean loss and gradient norm of the examples in `job.rows`, with dropout off."""
    task: Task = TASKS[job.task](job)
    features = task.features(job.train)
    chosen = [features[row] for row in job.rows]
    batches = [[row] for row in chosen] if task.softmax_over_padding else [chosen]
    model = task.model.from_pretrained(job.model, dtype=torch.float32).eval()
    losses = [model(**task.collate(batch)).loss for batch in batches]
    loss = torch.stack(losses).mean()
    loss.backward()
    return {"loss": loss.item(), "grad_norm": gradient_norm(model)}


def run(job: Job) -> dict[str, Any]:
    """All epochs and one evaluation; the figures of a result row."""
    began = time.perf_counter()
    recipe = job.recipe
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(job.seed)
    task: Task = TASKS[job.task](job)
    loader: DataLoader[Batch] = DataLoader(
        task.features(job.train),  # type: ignore[arg-type]  # a list is a data set
        batch_size=recipe.batch_size,
        shuffle=True,
        collate_fn=task.collate,
    )
    steps = len(loader) * recipe.epochs
    model = task.model.from_pretrained(job.model, dtype=torch.float32).train()
    startup_seconds = time.perf_counter() - began
    epochs = itertools.chain.from_iterable([loader] * recipe.epochs)
    figures = train(model, epochs, steps, job)
    peak_in_training = peak_host_memory_bytes()
    trained = time.perf_counter()
    score = evaluate(model, task, job)
    return {
        **figures,
        "startup_seconds": startup_seconds,
        "evaluate_seconds": time.perf_counter() - trained,
        job.metric: score,
        "peak_memory_in_training": peak_in_training,
        # The kernel counts roughly: its second answer can be some pages below the first.
        "peak_memory": max(peak_in_training, peak_host_memory_bytes()),
        "device": "cpu",
        "attention": model.config._attn_implementation,
    }


def train(model: torch.nn.Module, batches: Iterable[Batch], steps: int, job: Job) -> dict[str, Any]:
    """The plain loop over `batches`, of which there are `steps`; what it measured."""
    recipe = job.recipe
    optimizer = adamw(model, recipe, job.fused)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps(recipe, steps), steps)
    burn_in, losses = burn_in_steps(recipe, steps), []
    timer = Timer(started=time.perf_counter())
    for step, batch in enumerate(batches):
        if step == burn_in:
            timer = Timer(started=time.perf_counter())
        with precision(job):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        timer.add(
            examples=len(batch["input_ids"]),
            real_tokens=int(batch["attention_mask"].sum()),
            padded_tokens=batch["input_ids"].numel(),
        )
    timer.stopped = time.perf_counter()
    return {
        **timer.figures(),
        "steps": steps,
        "compile_seconds": 0.0,  # nothing is compiled
        "train_loss": torch.stack(losses).mean().item(),
        "threads": torch.get_num_threads(),
    }


def adamw(model: torch.nn.Module, recipe: Recipe, fused: bool) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only: biases and norms are the vectors."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused or None)


def precision(job: Job) -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.dtype == "bfloat16")


@torch.no_grad()
def evaluate(model: torch.nn.Module, task: Task, job: Job) -> float:
    """The job's metric over all examples of the dev file."""
    features, size = task.features(job.dev), job.recipe.eval_batch_size
    # Like lengths together, for less padding.
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    outputs: dict[int, np.ndarray] = {}
    model.eval()
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        with precision(job):
            output = model(**task.collate([features[i] for i in chosen]))
        outputs |= zip(chosen, task.outputs(output).float().numpy(), strict=True)
    return task.score([outputs[i] for i in range(len(features))], features, job.dev)


if __name__ == "__main__":
    serve({"gate": gate, "run": run})
