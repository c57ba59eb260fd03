"""What the workers of the suite share: timings of steps, several in a row, and their figures."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import StepJob
from jaxllm.throughput import peak_flops, peak_host_memory_bytes

TRACED = 3  # steps in a trace


@dataclass(frozen=True)
class Batch:
    """`arrays`: on the device, as the side wants them; `real_tokens`: those of texts, without the
    padding.
    """

    arrays: Any
    real_tokens: int
    padded_tokens: int


@dataclass(frozen=True)
class Steps:
    """`step` may return before the device is done; `finish` waits for all of it."""

    batches: list[Batch]
    step: Callable[[Batch], Any]
    finish: Callable[[], None]


def timed(
    job: StepJob,
    prepare: Callable[[StepJob], Steps],
    traced: Any,
    turn: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Warm-up, then `repeats` timings of `steps` steps each; the clock is read at their ends.

    turn: called after the first step, returns when the machine is this process's alone.
    """
    began = time.perf_counter()
    steps = prepare(job)
    prepared = time.perf_counter()
    steps.step(steps.batches[0])
    steps.finish()
    first = time.perf_counter()
    turn()
    turns = itertools.cycle(steps.batches)
    workload = job.workload
    for batch in itertools.islice(turns, workload.warmup):
        steps.step(batch)
    steps.finish()
    timings = []
    for _ in range(workload.repeats):
        chosen = list(itertools.islice(turns, workload.steps))
        start = time.perf_counter()
        for batch in chosen:
            steps.step(batch)
        steps.finish()
        seconds = time.perf_counter() - start
        real = sum(batch.real_tokens for batch in chosen)
        padded = sum(batch.padded_tokens for batch in chosen)
        timings.append({"seconds": seconds, "real_tokens": real, "padded_tokens": padded})
    if job.profile is not None:
        with traced(job.profile):
            for batch in itertools.islice(turns, TRACED):
                steps.step(batch)
            steps.finish()
    return {
        "prepare_seconds": prepared - began,
        "first_step_seconds": first - prepared,
        "timings": timings,
    }


def facts_of_jax() -> dict[str, Any]:
    """Memory and device, after the timings."""
    import jax

    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    return {
        "peak_memory": memory.get("peak_bytes_in_use", peak_host_memory_bytes()),
        "device": device.device_kind,
        "peak_flops": peak_flops(device.device_kind),
    }


def serve(
    *,
    start: Callable[[StepJob], dict[str, Any]] | None = None,
    gate: Callable[[StepJob], dict[str, Any]],
    prepare: Callable[[StepJob], Steps],
    facts: Callable[[], dict[str, Any]],
    traced: Any = contextlib.nullcontext,
) -> None:
    """The main of a worker: ``python -m benchmarks.<worker> JOB RESULT``, both JSON files."""
    job, result = StepJob.read(Path(sys.argv[1])), Path(sys.argv[2])
    if job.action == "run":

        def turn() -> None:
            result.with_name("ready").touch()
            sys.stdin.readline()

        figures = timed(job, prepare, traced, turn) | facts()
    else:
        action = start if job.action == "start" else gate
        assert action is not None
        figures = action(job)
    result.write_text(json.dumps(figures), encoding="utf-8")
