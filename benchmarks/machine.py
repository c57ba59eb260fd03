"""What a measurement says about where it was made: machine, versions, revision, other load."""

import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("jaxllm", "jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy")


def description() -> dict[str, Any]:
    """Facts that are the same for all rows of one session."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _revision(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@dataclass(frozen=True)
class Load:
    """CPU seconds since boot: of the whole machine, and of this process's finished children."""

    when: float
    busy: float | None  # None where the system has no /proc/stat
    children: float

    @classmethod
    def now(cls) -> "Load":
        times = os.times()
        return cls(
            time.perf_counter(), _busy_seconds(), times.children_user + times.children_system
        )

    def others(self, since: "Load", ours: float | None = None) -> float | None:
        """Share of the machine, 0 to 1, that other programs took since `since`.

        ours: CPU seconds of what is measured; None = of the children that have finished since.
        """
        if self.busy is None or since.busy is None:
            return None
        capacity = (self.when - since.when) * (os.cpu_count() or 1)
        ours = self.children - since.children if ours is None else ours
        # The system counts in ticks of 10 ms: a shorter time can seem more than full.
        return min(max(0.0, (self.busy - since.busy - ours) / capacity), 1.0)


def _busy_seconds() -> float | None:
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    # Time stolen by other virtual machines is lost to us just the same.
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit of this source tree, with "-dirty" when tracked files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
