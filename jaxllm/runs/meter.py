"""Runs steps and reads what they measured, one step behind."""

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxllm.errors import InputError
from jaxllm.metrics.throughput import StepClock, tokens_per_second
from jaxllm.runs.job import Job, Metrics
from jaxllm.runs.log import RunLog
from jaxllm.runs.progress import Progress
from jaxllm.runs.snapshots import Snapshots
from jaxllm.runs.step_trace import StepTrace

if TYPE_CHECKING:
    from jaxllm.data.loader import LoadedBatch, LoaderState


class RunError(InputError):
    """A run that cannot go on: its loss or its gradient is not finite."""


def epochs(job: Job, position: "LoaderState") -> float:
    """Epochs done, with the share of the one that has begun."""
    if position.step == 0:
        return float(position.epoch)
    return round(position.epoch + position.step / job.loader.steps_in_epoch(position.epoch), 4)


class StepMeter:
    """Dispatches a step, then reads the metrics of the one before: the host never waits for the
    newest, and no more than two are under way.

    Args:
        every: steps from one log line to the next.
    """

    def __init__(
        self,
        job: Job,
        progress: Progress,
        log: RunLog,
        snapshots: Snapshots,
        trace: StepTrace,
        every: int,
    ) -> None:
        self.clock = StepClock(progress.train_seconds, progress.compile_seconds)
        self._job, self._progress, self._log = job, progress, log
        self._snapshots, self._trace, self._every = snapshots, trace, every
        self._pending: tuple[Metrics, LoadedBatch] | None = None
        self._logged = (progress.real_tokens, progress.padded_tokens, self.clock.seconds)

    def step(self, state: Any, batch: "LoadedBatch") -> Any:
        """Dispatches a step and returns the state it will give.

        Raises:
            RunError: a metric of the step before is not finite.
        """
        number = self._progress.step + (self._pending is not None) + 1
        if self._trace.begins(number):
            self.drain()
            with self.clock.paused():
                self._trace.start()
        with self._trace.step(number), contextlib.ExitStack() as stack:
            if self.clock.is_new(batch.arrays):
                self.drain()  # or its execution would count as compilation
                stack.enter_context(self._log.compiling())
                stack.enter_context(self.clock.compiling())
            state, metrics = self._job.train_step(state, batch.arrays)
        self.drain()
        self._pending = metrics, dataclasses.replace(batch, arrays={})
        if self._trace.ends(number):
            self.drain()
            with self.clock.paused():
                self._trace.stop()
        return state

    def drain(self) -> None:
        """Waits for the step that has not been read, if any; errors as in `step`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        metrics, batch = pending
        sums = {
            name: (float(total), float(weight))
            for name, (total, weight) in jax.device_get(metrics).items()
        }
        self._check_finite(sums, batch)
        progress = self._progress
        progress.add(sums, batch.real_tokens, batch.padded_tokens)
        self.clock.lap()
        if progress.step % self._every == 0 or progress.step == self._job.total_steps:
            self._log.step(self._record(batch))
        self._log.tick()

    def _record(self, batch: "LoadedBatch") -> dict[str, Any]:
        progress, (real, padded, seconds) = self._progress, self._logged
        self._logged = (progress.real_tokens, progress.padded_tokens, self.clock.seconds)
        took = self._logged[2] - seconds
        rate = tokens_per_second(progress.real_tokens - real, took)
        peak = self._job.peak_rate
        means = progress.take_window()
        return {
            "step": progress.step,
            "epoch": epochs(self._job, batch.next_state),
            "loss": means.pop("loss", math.nan),
            "learning_rate": float(self._job.learning_rate(progress.step - 1)),
            **means,
            "real_tokens_per_second": rate,
            "padded_tokens_per_second": tokens_per_second(progress.padded_tokens - padded, took),
            **({} if peak is None else {"mfu": rate / peak}),
        }

    def _check_finite(self, sums: dict[str, tuple[float, float]], batch: "LoadedBatch") -> None:
        bad = [f"{name} {total}" for name, (total, _) in sums.items() if not math.isfinite(total)]
        if not bad:
            return
        rows = sorted({int(row) for row in np.ravel(batch.example_rows) if row >= 0})
        latest = self._snapshots.latest()
        last = self._snapshots.path(latest) if latest is not None else "none yet"
        raise RunError(
            f"{', '.join(bad)} at step {self._progress.step + 1}; the batch held the examples of "
            f"rows {rows}. Nothing was saved after it; the last good snapshot: {last}. Look at "
            "these rows, or lower optimizer.learning_rate or optimizer.clip_norm and give another "
            "run.dir."
        )
