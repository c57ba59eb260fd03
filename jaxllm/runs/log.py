"""What a run says while it goes: metrics.jsonl, trackers, the progress bar."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jaxllm.errors import InputError
from jaxllm.files import finite, reading, write_atomic, writing
from jaxllm.runs.progress import Progress
from jaxllm.runs.trackers import TRACKERS, Add

if TYPE_CHECKING:
    from jaxllm.runs.directory import RunDir

logger = logging.getLogger("jaxllm.runs.log")

METRICS = "metrics.jsonl"
_WAY_OUT = (
    "mend it, or move it away and run the same command again: it goes on without these records"
)


def read_records(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl up to `last_step`, without a last line that a crash cut off.

    Raises:
        InputError: another line is not a record.
    """
    if not path.exists():
        return []
    expected = "JSON objects of numbers with a `step`, one a line"
    with reading(path, expected, _WAY_OUT):
        *whole, rest = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate([*whole, rest], start=1):
        if not line.strip():
            continue
        try:
            with reading(path, expected, _WAY_OUT):
                record = json.loads(line.decode())
                if not _is_record(record):
                    raise ValueError("no record")
        except InputError as error:
            if number > len(whole):
                logger.warning("%s: line %d was cut off; it is left out", path, number)
                break
            raise InputError(f"line {number} of {error}") from error
        records.append(record)
    return [r for r in records if last_step is None or r["step"] <= last_step]


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("step")) is int
        and all(x is None or type(x) in (int, float) for x in value.values())
    )


class RunLog:
    """Writes records as they come; a context manager.

    On entry metrics.jsonl is cut back to `step`, so that a resumed run has each step once.

    Args:
        directory: of the run; in a process that may not write there, nothing is written or shown.
        progress: what is done; it counts the records.
        total: how many the run has.
    """

    def __init__(self, directory: "RunDir", progress: Progress, total: int) -> None:
        self._path, self._writer = directory.path / METRICS, directory.writer
        self._config = directory.config
        self._progress, self._total = progress, total
        self._step = self._done = progress.step
        # A step of this start, and when it was done: not the first, which compiles.
        self._pace: tuple[int, float] | None = None
        self._trackers: list[Add] = []

    def __enter__(self) -> "RunLog":
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        run = self._config.run
        with contextlib.ExitStack() as stack:
            if self._writer:
                kept = read_records(self._path, self._step)
                if len(kept) < self._progress.records:
                    logger.warning(
                        "%s holds %d of the %d records that were written up to step %d; the others "
                        "are lost, and the run goes on without them",
                        *(self._path, len(kept), self._progress.records, self._step),
                    )
                write_atomic(self._path, "".join(json.dumps(r) + "\n" for r in kept))
                for name in run.trackers:
                    tracker = TRACKERS[name](self._path.parent, self._config, self._step)
                    self._trackers.append(stack.enter_context(tracker))
            # disable=None: no bar where stderr is not a terminal; log lines take its place.
            self._bar = tqdm(
                total=self._total,
                initial=self._step,
                unit="step",
                desc=None if self._step else self._epoch(0.0),
                dynamic_ncols=True,
                disable=None if run.progress and self._writer else True,
            )
            stack.callback(self._bar.close)
            loggers = [logging.getLogger(), logging.getLogger("jaxllm")]
            stack.enter_context(logging_redirect_tqdm([x for x in loggers if x.handlers]))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Says so while a step compiles inside."""
        self._bar.set_postfix_str("compiling …")
        if self._lines:
            logger.info("compiling …")
        yield
        self._bar.set_postfix_str("")

    def tick(self) -> None:
        """A step is done."""
        self._bar.update(1)
        self._done += 1
        self._pace = self._pace or (self._done, time.monotonic())

    def step(self, record: dict[str, Any]) -> None:
        """The record of a log step: step, epoch, loss, learning_rate, grad_norm, tokens/s."""
        self._write(record, "train/")
        rate = record["real_tokens_per_second"]
        shown = f"loss {record['loss']:.4f} lr {record['learning_rate']:.2e} {rate:,.0f} tokens/s"
        if "mfu" in record:
            shown += f" MFU {record['mfu']:.1%}"
        epoch = self._epoch(record["epoch"])
        self._bar.set_description_str(epoch, refresh=False)
        self._bar.set_postfix_str(shown, refresh=False)
        if self._lines:
            step = record["step"]
            logger.info("step %d/%d, %s%s: %s", step, self._total, epoch, self._left(step), shown)

    def evaluation(self, record: dict[str, Any], metric: str, progress: Progress) -> None:
        """The record of an evaluation: step, epoch, and eval/<metric> each.

        Says `metric`, which chooses the best model, the best so far, the loss, and what else tells
        more: values of classes, and what equals a value that was said, are for the file.
        """
        self._write(record, "")
        if not self._writer:
            return
        values = {k[5:]: value for k, value in record.items() if k.startswith("eval/")}
        said = {metric: values.pop(metric)}
        said |= {"loss": values.pop("loss")} if "loss" in values else {}
        for name, value in values.items():
            if "/" not in name and value not in said.values():
                said[name] = value
        words = [f"{name} {value:.4f}" for name, value in said.items()]
        if progress.best_step == progress.step:
            words[0] += " (the best so far)"
        elif progress.best is not None:
            words[0] += f" (best {progress.best:.4f} at step {progress.best_step})"
        logger.info("step %d/%d: dev %s", record["step"], self._total, ", ".join(words))

    @property
    def _lines(self) -> bool:
        """Whether log lines take the place of the bar."""
        return self._bar.disable and self._writer

    def _epoch(self, done: float) -> str:
        train = self._config.train
        return f"epoch {done:.2f}" + (f"/{train.epochs:g}" if train.steps is None else "")

    def _left(self, step: int) -> str:
        """The time left after `step`, by the time that the steps of this start took."""
        if self._pace is None or step in (self._pace[0], self._total):
            return ""
        seconds = (time.monotonic() - self._pace[1]) / (step - self._pace[0])
        return f", {self._bar.format_interval(seconds * (self._total - step))} left"

    def _write(self, record: dict[str, Any], prefix: str) -> None:
        self._progress.records += 1
        if not self._writer:
            return
        line = json.dumps(finite(record)) + "\n"
        with writing(str(self._path), "Make room and run the same command again: it goes on."):
            size = self._path.stat().st_size if self._path.exists() else 0
            try:
                with open(self._path, "ab", buffering=0) as file:
                    _write_all(file.fileno(), line.encode())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self._path, size)  # no half line
                raise
            values = {
                prefix + name: value
                for name, value in finite(record).items()  # tensorboardX warns of each NaN
                if name not in ("step", "epoch") and value is not None
            }
            for add in self._trackers:
                add(values, record["step"])


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
