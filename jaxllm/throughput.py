"""Tokens per second, step-time percentiles, FLOPs per token and MFU, formulas written out."""

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


def effective_length(lengths: Sequence[int]) -> float:
    """Mean segment length weighted by tokens, sum(n²) / sum(n): the keys a token attends to."""
    total = sum(lengths)
    return sum(n * n for n in lengths) / total if total else 0.0


def encoder_flops_per_token(
    *,
    layers: int,
    width: int,
    mlp_width: int,
    attended: float,
    outputs: int = 0,
    head_fraction: float = 0.0,
) -> float:
    """Training FLOPs (forward and backward, no recomputation) per real token of a BERT encoder.

        6·L·(4d² + 2·d·F)  +  12·L·d·T_eff  +  6·f·(d² + d·V)

    The first term is the matrix products of the blocks, the second attention scores and values,
    the third the head: a dense d×d (pooler, or the masked-LM transform) and the projection to
    `outputs`.

    Args:
        layers, width, mlp_width: L, d and F.
        attended: T_eff, see `effective_length`; the row length for rows of one segment.
        outputs: V, the vocabulary for masked LM, the number of labels for classification.
        head_fraction: f, the share of tokens that go through the head (0.15 for masked LM; examples
            divided by tokens for classification).
    """
    body = 6 * layers * (4 * width**2 + 2 * width * mlp_width)
    attention = 12 * layers * width * attended
    head = 6 * head_fraction * (width**2 + width * outputs)
    return body + attention + head


def mfu(real_tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation: tokens/s · FLOPs per token / peak FLOP/s of all devices together."""
    return real_tokens_per_second * flops_per_token / peak


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
    def compiling(self) -> Iterator[None]:
        """Counts the time inside as compilation."""
        self.stop()
        began = time.perf_counter()
        yield
        self.compile_seconds += time.perf_counter() - began
        self.start()
