"""The jaxllm side of ``benchmarks.finetune``: the loader and the step of ``jaxllm train``."""

import time
from pathlib import Path
from typing import Any, Literal

import jax

import benchmarks.no_torch  # noqa: F401
import jaxllm
from benchmarks.recipe import Job, Timer, burn_in_steps, read_examples, serve
from jaxllm.config.reading import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.data.loader import LoaderState
from jaxllm.metrics.throughput import peak_host_memory_bytes
from jaxllm.tasks.build import build

NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}


MODELS: dict[str, Any] = {
    "sequence-classification": jaxllm.AutoModelForSequenceClassification,
    "token-classification": jaxllm.AutoModelForTokenClassification,
    "question-answering": jaxllm.AutoModelForQuestionAnswering,
}


def start(job: Job) -> dict[str, Any]:
    """Writes the model that all runs start from, its new head included."""
    from jaxllm.data.corpus import load_tokenizer

    head: dict[str, Any] = {}  # spans have no labels
    if job.task != "question-answering":
        head = {"num_labels": len(job.labels) or 1, "problem_type": problem_type(job)}
    model = MODELS[job.task].from_pretrained(job.model, **head)
    directory = Path(job.directory) / "model"
    model.save_pretrained(directory)
    load_tokenizer(job.model).save_pretrained(directory)
    return {"model": str(directory)}


def gate(job: Job) -> dict[str, Any]:
    """Mean loss and gradient norm of the first packed batch, with dropout off."""
    built = build(config(job, NO_DROPOUT))
    batch = next(built.loader.batches(LoaderState(epoch=0, step=0)))
    _, metrics = built.train_step(built.state, batch.arrays)
    return {
        "loss": mean(metrics["loss"]),
        "grad_norm": mean(metrics["grad_norm"]),
        "rows": sorted(map(int, batch.members)),
    }


def run(job: Job) -> dict[str, Any]:
    """All epochs and one evaluation; the figures of a result row."""
    began = time.perf_counter()
    built = build(config(job, {}))
    steps, state = built.total_steps, built.state
    built.state = None  # the step donates it
    timer, burn_in = Timer(), burn_in_steps(job.recipe, steps)
    losses: list[float] = []
    startup_seconds = time.perf_counter() - began
    timer.started = time.perf_counter()
    batches = built.loader.batches(LoaderState(epoch=0, step=0))
    pending: list[tuple[jax.Array, jax.Array]] = []
    for step, batch in zip(range(steps), batches, strict=False):
        if step == burn_in:
            jax.block_until_ready(state)
            timer = Timer(started=time.perf_counter())
        dispatched = time.perf_counter()
        state, metrics = built.train_step(state, batch.arrays)
        if step == 0:  # compilation blocks, execution does not
            compile_seconds = time.perf_counter() - dispatched
        losses += map(mean, pending)  # of the step before, while this one computes
        pending = [metrics["loss"]]
        timer.add(
            examples=batch.examples,
            real_tokens=batch.real_tokens,
            padded_tokens=batch.padded_tokens,
        )
    jax.block_until_ready(state)
    timer.stopped = time.perf_counter()
    losses += map(mean, pending)
    peak_in_training = peak_host_memory_bytes()
    score = built.evaluate(state.params)[job.metric]
    return {
        **timer.figures(),
        "steps": steps,
        "compile_seconds": compile_seconds,
        "startup_seconds": startup_seconds,
        "evaluate_seconds": time.perf_counter() - timer.stopped,
        "train_loss": sum(losses) / len(losses),
        job.metric: score,
        "peak_memory_in_training": peak_in_training,
        # The kernel counts roughly: its second answer can be some pages below the first.
        "peak_memory": max(peak_in_training, peak_host_memory_bytes()),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def config(job: Job, overrides: dict[str, Any]) -> Config:
    """The configuration that ``jaxllm train`` would be given for this job."""
    recipe = job.recipe
    texts: dict[str, Any] = {"format": "jsonl", "labels": job.labels or None}
    if job.task == "question-answering":
        texts = {}
    elif read_examples(job.dev)[1] is not None:
        texts["text_pair"] = "pair"
    return Config(
        model=ModelConfig(
            path=job.model,
            task=job.task,  # type: ignore[arg-type]
            dtype=job.dtype,
            config=overrides,
            problem_type=problem_type(job),
        ),
        data=DataConfig(
            train=[job.train],
            dev=[job.dev],
            **texts,
            max_length=recipe.max_length,
            cache_dir=f"{job.directory}/cache",  # empty: each run tokenizes, as PyTorch's does
        ),
        optimizer=OptimizerConfig(
            learning_rate=recipe.learning_rate,
            schedule="linear",
            warmup=recipe.warmup,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
        ),
        train=TrainConfig(
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            seed=job.seed,
            eval_batch_size=recipe.eval_batch_size,
        ),
        run=RunConfig(dir=f"{job.directory}/run", trackers=[], progress=False),
    )


def problem_type(job: Job) -> Literal["single_label_classification", "regression"]:
    numbers = job.task == "sequence-classification" and not job.labels
    return "regression" if numbers else "single_label_classification"


def mean(sums: tuple[jax.Array, jax.Array]) -> float:
    return float(sums[0]) / float(sums[1])


if __name__ == "__main__":
    serve({"start": start, "gate": gate, "run": run})
