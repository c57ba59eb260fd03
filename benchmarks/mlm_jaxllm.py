"""The jaxllm side of ``benchmarks.mlm``: the training step, its head on the masked positions."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import benchmarks.no_torch  # noqa: F401
from benchmarks.jaxllm_run import mean
from benchmarks.recipe import Job, Timer, burn_in_steps, serve
from jaxllm import AutoModelForMaskedLM, losses, models, objectives
from jaxllm.config import OptimizerConfig
from jaxllm.data.corpus import Examples, ReadReport
from jaxllm.data.packing import Rows, fill_packed, first_fit, one_per_row, slots
from jaxllm.optim import make_optimizer
from jaxllm.pretrained import hf
from jaxllm.sharding import make_mesh
from jaxllm.tasks.model import load_saved
from jaxllm.throughput import peak_host_memory_bytes
from jaxllm.train import init_state, make_train_step


class Batch(NamedTuple):
    arrays: dict[str, np.ndarray]
    texts: np.ndarray  # indices
    real_tokens: int


def start(job: Job) -> dict[str, Any]:
    """Writes the model that all runs start from; what `job.model` does not say is BERT-base's."""
    config = hf.load_config(None, model_type="bert", **json.loads(Path(job.model).read_text()))
    directory = Path(job.directory) / "model"
    AutoModelForMaskedLM.from_config(config).save_pretrained(directory)
    return {"model": str(directory)}


def gate(job: Job) -> dict[str, Any]:
    """Mean loss and gradient norm of the first texts, packed, with dropout off."""
    first = np.arange(job.recipe.batch_size)
    (batch,) = batches(job, first)
    step, state = training(job, 1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    _, metrics = step(state, jax.device_put(batch.arrays))
    figures = {"loss": mean(metrics["loss"]), "grad_norm": mean(metrics["grad_norm"])}
    return {**figures, "rows": first.tolist()}


def run(job: Job) -> dict[str, Any]:
    """All epochs; the figures of a result row."""
    began = time.perf_counter()
    loaded = batches(job, None) * job.recipe.epochs
    steps = len(loaded)
    step, state = training(job, steps)
    timer, burn_in = Timer(), burn_in_steps(job.recipe, steps)
    outcomes: list[tuple[jax.Array, jax.Array]] = []
    startup_seconds = time.perf_counter() - began
    for number, batch in enumerate(loaded):
        if number == burn_in:
            jax.block_until_ready(state)
            timer = Timer(started=time.perf_counter())
        dispatched = time.perf_counter()
        state, metrics = step(state, jax.device_put(batch.arrays))
        if number == 0:  # compilation blocks, execution does not
            compile_seconds = time.perf_counter() - dispatched
        outcomes.append(metrics["loss"])
        timer.add(
            examples=len(batch.texts),
            real_tokens=batch.real_tokens,
            padded_tokens=batch.arrays["input_ids"].size,
        )
    jax.block_until_ready(state)
    timer.stopped = time.perf_counter()
    return {
        **timer.figures(),
        "steps": steps,
        "compile_seconds": compile_seconds,
        "startup_seconds": startup_seconds,
        "train_loss": float(np.mean([mean(loss) for loss in outcomes])),
        "peak_memory": peak_host_memory_bytes(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def training(job: Job, steps: int, **overrides: Any) -> tuple[Any, Any]:
    """(the jitted step, the state at step 0)."""
    mesh, recipe = make_mesh(), job.recipe
    config = hf.load_config(job.model, **overrides)
    _, graphdef, params = load_saved(
        job.model, "masked-lm", config, mesh, dtype=job.dtype, unroll=0
    )
    settings = OptimizerConfig(
        learning_rate=recipe.learning_rate,
        schedule="linear",
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
    )
    tx = make_optimizer(settings, steps)
    state = init_state(params, tx, mesh, seed=job.seed, frozen=[])
    objective = objectives.labelled(models.apply_fn(graphdef), losses.cross_entropy)
    step = make_train_step(
        objective, tx, state, mesh, clip_norm=recipe.clip_norm, accumulation=1, frozen=[]
    )
    return step, state


def batches(job: Job, chosen: np.ndarray | None) -> list[Batch]:
    """The texts (None: all), packed or one a row, with their masked positions for the head."""
    with open(job.train, encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    length, size = job.recipe.max_length, job.recipe.batch_size
    examples = as_examples([text["ids"] for text in texts])
    order = np.arange(len(texts)) if chosen is None else chosen
    per_row = slots(length) if job.packed else 1
    rows = one_per_row(order)
    if job.packed:
        rows = first_fit(
            examples.lengths, order, row_length=length, max_per_row=per_row, window=len(order)
        )
    counts = np.array([len(text["positions"]) for text in texts])
    masked = max(counts[rows.between(r, r + 1).members].sum() for r in range(rows.height))
    found = []
    for first in range(0, rows.height, size):
        part = rows.between(first, first + size)
        arrays = fill_packed(examples, part, row_length=length, max_per_row=per_row, height=size)
        arrays |= targets(part, texts, arrays["head_positions"], int(masked))
        real = int(examples.lengths[part.members].sum())
        found.append(Batch(arrays, part.members, real))
    return found


def as_examples(ids: list[list[int]]) -> Examples:
    tokens = np.concatenate([np.array(text, np.int32) for text in ids])
    offsets = np.cumsum([0, *map(len, ids)])
    types, rows = np.zeros(len(tokens), np.uint8), np.arange(1, len(ids) + 1)
    return Examples(tokens, types, offsets, None, rows, ReadReport(len(ids), len(ids)))


def targets(
    rows: Rows, texts: list[dict[str, Any]], begins_BP: np.ndarray, masked: int
) -> dict[str, np.ndarray]:
    """`head_positions`, `labels` and `label_weights` [B, `masked`] of the masked positions."""
    shape = (len(begins_BP), masked)
    arrays = {name: np.zeros(shape, np.int32) for name in ("head_positions", "labels")}
    arrays["label_weights"] = np.zeros(shape, np.float32)
    for row in range(rows.height):
        members = rows.between(row, row + 1).members
        at = [
            begin + position
            for begin, i in zip(begins_BP[row], members, strict=False)
            for position in texts[i]["positions"]
        ]
        arrays["head_positions"][row, : len(at)] = at
        arrays["labels"][row, : len(at)] = [x for i in members for x in texts[i]["labels"]]
        arrays["label_weights"][row, : len(at)] = 1
    return arrays


if __name__ == "__main__":
    serve({"start": start, "gate": gate, "run": run})
