"""What the workers of the suite share: timings of steps, several in a row, and their figures."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.machine import Load
from benchmarks.workloads import StepJob
from jaxllm.metrics.throughput import peak_flops, peak_host_memory_bytes

TRACED = 3  # steps in a trace


@dataclass(frozen=True)
class Batch:
    """`arrays`: on the device, as the side wants them; `real_tokens`: those of texts, without the
    padding.
    """

    arrays: Any
    real_tokens: int
    padded_tokens: int


class Steps(Protocol):
    """What computes the batches, and the batches.

    compile: makes `step` ready, as far as that goes without holding a step's memory.
    step: may return before the device is done; `finish` waits for all of it.
    traced: writes a trace of the steps inside into a directory, and a table of what took longest.
    """

    batches: list[Batch]

    def compile(self) -> None: ...
    def step(self, batch: Batch) -> None: ...
    def finish(self) -> None: ...
    def traced(self, directory: str) -> AbstractContextManager[None]: ...


class JaxSteps:
    """A jitted `step(state, arrays)`, which gives (new state, …) where it `moves` the state."""

    def __init__(self, step: Any, state: Any, batches: list[Batch], *, moves: bool = True):
        self.batches, self._step, self._state, self._moves = batches, step, state, moves
        self._held: Any = None

    def compile(self) -> None:
        self._step = self._step.lower(self._state, self.batches[0].arrays).compile()

    def step(self, batch: Batch) -> None:
        self._held = self._step(self._state, batch.arrays)
        if self._moves:
            self._state = self._held[0]

    def finish(self) -> None:
        import jax

        jax.block_until_ready(self._held)

    @contextlib.contextmanager
    def traced(self, directory: str) -> Iterator[None]:
        import jax

        from benchmarks import profiles

        with jax.profiler.trace(directory):
            yield
        text = profiles.table(directory, TRACED)
        Path(directory, "operations.md").write_text(text, encoding="utf-8")


def timed(
    job: StepJob, prepare: Callable[[StepJob], Steps], turn: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Warm-up, then `repeats` timings of the same `steps` steps; the clock is read at their ends.

    turn: called after compilation, returns when the machine is this process's alone.
    """
    workload = job.workload
    began = time.perf_counter()
    steps = prepare(job)
    prepared = time.perf_counter()
    steps.compile()
    compiled = time.perf_counter()
    turn()
    before, cpu, start = Load.now(), time.process_time(), time.perf_counter()
    steps.step(steps.batches[0])
    steps.finish()
    first = time.perf_counter() - start
    chosen = list(itertools.islice(itertools.cycle(steps.batches), workload.steps))
    for batch in itertools.islice(itertools.cycle(chosen), 1, 1 + workload.warmup):
        steps.step(batch)
    steps.finish()
    timings = []
    for _ in range(workload.repeats):
        start = time.perf_counter()
        for batch in chosen:
            steps.step(batch)
        steps.finish()
        seconds = time.perf_counter() - start
        real = sum(batch.real_tokens for batch in chosen)
        padded = sum(batch.padded_tokens for batch in chosen)
        timings.append({"seconds": seconds, "real_tokens": real, "padded_tokens": padded})
    others = Load.now().others(before, ours=time.process_time() - cpu)
    if job.profile is not None:
        Path(job.profile).mkdir(parents=True, exist_ok=True)
        with steps.traced(job.profile):
            for batch in itertools.islice(itertools.cycle(chosen), TRACED):
                steps.step(batch)
            steps.finish()
    return {
        "prepare_seconds": prepared - began,
        "first_step_seconds": compiled - prepared + first,
        "timings": timings,
        "other_load": others,
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
) -> None:
    """The main of a worker: ``python -m benchmarks.<worker> JOB RESULT``, both JSON files."""
    job, result = StepJob.read(Path(sys.argv[1])), Path(sys.argv[2])
    if job.action == "run":

        def turn() -> None:
            result.with_name("ready").touch()
            sys.stdin.readline()

        figures = timed(job, prepare, turn) | facts()
    else:
        action = start if job.action == "start" else gate
        assert action is not None
        figures = action(job)
    result.write_text(json.dumps(figures), encoding="utf-8")
