"""Sizes that cannot be: an estimate of the bytes that something takes, against what there are.

Estimates are from below, so that nothing is refused that could run.
"""

import math
import os
from pathlib import Path
from typing import Any

import jax

from jaxllm.errors import InputError

# Where Linux says what the processes of a container may take together.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check(needed: int, what: str, way_out: str) -> None:
    """InputError where `what` takes `needed` bytes of each device, and a device has less."""
    there_are = of_device()
    if there_are is not None and needed > there_are:
        kind, count = jax.local_devices()[0].platform.upper(), jax.device_count()
        where = f", and the {kind} has" if count == 1 else f" on each of {count} {kind} devices of"
        raise InputError(
            f"{what} would take at least {_gigabytes(needed)} of memory{where} "
            f"{_gigabytes(there_are)}; {way_out}"
        )


def bytes_of(tree: Any) -> int:
    """What a tree of arrays or their structs takes of each device, by their shardings."""

    def size(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def of_device() -> int | None:
    """Bytes of memory that one of this process's devices has; None where that is not known.

    Those of a CPU share what the machine has, or the container.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    machine = of_machine()
    return None if machine is None else machine // jax.local_device_count()


def of_machine() -> int | None:
    """Bytes of the machine's memory, or of what its container may take."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for file in map(Path, _LIMITS):
        text = file.read_text().strip() if file.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)


def _gigabytes(count: int) -> str:
    whole, tenths = divmod(count // 10**8, 10)  # of numbers that a float cannot hold, too
    return f"{whole:,}.{tenths} GB"
