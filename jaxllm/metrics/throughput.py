"""Tokens per second, step-time percentiles, peaks of devices, and the clock of a run's steps."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Dense bfloat16 peak in FLOP/s, by a part of jax's device_kind; the vendors' data sheets.
PEAK_FLOPS = {
    "H200": 989.4e12,
    "H100": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "V100": 125e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of one device by its `device_kind`; None for one that is not in the table (a CPU)."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def tokens_per_second(tokens: int, seconds: float) -> float:
    """0.0 where no time has passed."""
    return tokens / seconds if seconds > 0 else 0.0


def percentiles(seconds: Sequence[float], which: Sequence[int] = (50, 90, 99)) -> dict[int, float]:
    """{50: median, …} of step times, each the nearest rank: a step that really took that long."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {p: ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in which}


def tokens_per_second_at_peak(
    flops_per_token: float, device_kind: str, devices: int
) -> float | None:
    """Tokens/s that would take all FLOP/s of the devices: tokens/s over it are the MFU.

    None for a device that is not in the table.
    """
    peak = peak_flops(device_kind)
    return None if peak is None else peak * devices / flops_per_token


def peak_host_memory_bytes() -> int:
    """The largest resident size this process has had."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:  # ru_maxrss would also count the process that started this one
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class StepClock:
    """Seconds spent on training steps. Compilation, evaluation, export and saving stop it.

    The first step of each batch shape compiles; its dispatch is counted as `compile_seconds`, its
    execution as training.
    """

    def __init__(self, seconds: float = 0.0, compile_seconds: float = 0.0) -> None:
        self.compile_seconds = compile_seconds
        self.laps: list[float] = []
        self._seconds = seconds
        self._since: float | None = None
        self._lap_start = seconds
        self._shapes: set[tuple] = set()

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        self._seconds, self._since = self.seconds, None

    def lap(self) -> None:
        """Ends a step: `laps` gets the seconds since the step before."""
        now = self.seconds
        self.laps.append(now - self._lap_start)
        self._lap_start = now

    def is_new(self, arrays: Mapping[str, Any]) -> bool:
        """Whether a batch of these shapes has not been seen, so that its step will compile."""
        shapes = tuple(sorted((name, x.shape) for name, x in arrays.items()))
        new = shapes not in self._shapes
        self._shapes.add(shapes)
        return new

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside; then goes on as before."""
        running = self._since is not None
        self.stop()
        yield
        if running:
            self.start()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Counts the time inside as compilation."""
        with self.paused():
            began = time.perf_counter()
            yield
            self.compile_seconds += time.perf_counter() - began
