"""A trace of some steps of a run, as jax.profiler writes it."""

import contextlib
import logging
from pathlib import Path

import jax

from jaxllm.files import writing

logger = logging.getLogger("jaxllm")


class StepTrace:
    """Traces the steps from a first to a last one, counted from 1 as in metrics.jsonl; a context
    manager that writes the trace, should the run end before.

    Args:
        steps: [first, last]; None = no trace.
        directory: where it goes.
    """

    def __init__(self, steps: list[int] | None, directory: Path) -> None:
        self._first, self._last = steps or (1, 0)
        self._directory = directory
        self._running = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.stop()

    def begins(self, step: int) -> bool:
        """Whether `step` is to be traced, and no trace runs yet."""
        return self._first <= step <= self._last and not self._running

    def ends(self, step: int) -> bool:
        """Whether `step` is the last one that is traced."""
        return step == self._last and self._running

    def start(self) -> None:
        """Begins the trace; the steps before are done."""
        jax.profiler.start_trace(str(self._directory))
        self._running = True

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """Marks the dispatch of a step in the trace, if one runs."""
        if not self._running:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def stop(self) -> None:
        """Writes the trace; its steps are done."""
        self._running = False
        way_out = "Make room, or set train.profile: null, and run the same command again."
        with writing(str(self._directory), way_out):
            jax.profiler.stop_trace()
        logger.info("the trace of steps %d to %d: %s", self._first, self._last, self._directory)
