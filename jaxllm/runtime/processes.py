"""Several processes that train together: how they find each other, and how they agree."""

import contextlib
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import jax
import numpy as np

from jaxllm.errors import InputError
from jaxllm.runtime import compile_cache, cpu_guard, peers
from jaxllm.runtime.interrupt import Interrupted
from jaxllm.runtime.peers import Peers

logger = logging.getLogger("jaxllm.runtime.processes")

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_BY_HAND = f"{ADDRESS}=HOST:PORT of the first process, {COUNT} and {INDEX} (from 0)"
PATIENCE = 60.0  # seconds that a process waits for the others at the start
_LINGER = 10  # seconds


@contextlib.contextmanager
def joined(processes: int) -> Iterator[None]:
    """`join`; inside, a process that fails ends, and one that outlives another says so and ends."""
    with _patience(processes):
        join(processes)
        compile_cache.enable()
        cpu_guard.announce()  # not before: only now it is known which process is the first
        watch = _watch() if jax.process_count() > 1 else None
    if watch is None:
        yield
        return
    try:
        yield
        watch.leave(failed=False)
    except Interrupted:  # all of them, after the same step
        watch.leave(failed=False)
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            time.sleep(peers.GRACE)  # the watch ends this process, if another one is gone
        watch.leave(failed=True)
        _end_soon(2 if isinstance(error, InputError) else 1)
        raise
    finally:
        watch.close()


def _watch() -> Peers:
    from jax._src import distributed  # a host that JAX has found by itself has no public name

    host = str(distributed.global_state.coordinator_address).rpartition(":")[0]
    try:
        return Peers(jax.process_index(), host, gather)
    except Exception as error:
        _end_soon(1)
        raise InputError(
            f"the processes lost each other at the start ({error}). See which of them has ended, "
            "and what it says; then start all of them again"
        ) from error


def _end_soon(status: int) -> None:
    """Ends this process in a while: at exit JAX waits 300 s for all others, who may wait for it."""
    timer = threading.Timer(_LINGER, os._exit, [status])
    timer.daemon = True
    timer.start()


def _patience(processes: int) -> contextlib.AbstractContextManager[None]:
    if processes == 1 and ADDRESS not in os.environ:
        return contextlib.nullcontext()
    count = os.environ.get(COUNT, processes if processes > 0 else "all")
    first = os.environ.get(ADDRESS)
    what = f"{count} processes" + (f" (the first at {first})" if first else "")
    return peers.patience(PATIENCE, what, lambda text: logger.warning("%s", text))


def join(processes: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Joins the other processes of a run; before JAX's first computation.

    They are those that the three variables of the environment name, else those that a TPU pod,
    Slurm, Open MPI or Kubernetes has started (`jax.distributed.initialize` finds them).

    Args:
        processes: how many there must be, this one included; -1 = any number.

    Raises:
        InputError: they are not found, or are not so many.
    """
    named = _named(environ)
    if named:
        _check_count(processes, named["num_processes"])
    if named or processes != 1:
        try:
            jax.distributed.initialize(**named)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"mesh.processes: found {processes}, but the other processes were not found "
                f"({error}). Start all of them on a TPU pod, by Slurm, Open MPI or Kubernetes, or "
                f"each with {_BY_HAND} in its environment"
            ) from error
    _check_count(processes, jax.process_count())


def _named(environ: MutableMapping[str, str]) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` that are in the environment: all, or none."""
    given = {name: environ[name] for name in (ADDRESS, COUNT, INDEX) if name in environ}
    if not given:
        return {}
    try:
        count, index = int(given[COUNT]), int(given[INDEX])
        if not (0 <= index < count and re.fullmatch(r".+:\d+", given[ADDRESS])):
            raise ValueError
    except (KeyError, ValueError):
        found = ", ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"the environment has {found}; expected {_BY_HAND}") from None
    return {"coordinator_address": given[ADDRESS], "num_processes": count, "process_id": index}


def _check_count(wanted: int, found: int) -> None:
    if wanted not in (found, -1):
        raise InputError(
            f"mesh.processes: found {wanted}, but {found} processes were started; set it to "
            f"{found}, or to -1 for as many as there are"
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What stops one process inside stops them all here; else the others would wait for it.

    Inside, no process may wait for another.
    """
    if jax.process_count() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = gather(failure is not None)
    if failure is not None:
        raise failure
    if failed.any():
        raise InputError(f"process {failed.argmax()} stopped; it says why")


def check_same(what: str, value: Callable[[], object]) -> None:
    """Raises InputError where processes have another `value`: they would compute nonsense."""
    if jax.process_count() == 1:
        return
    sums = gather(zlib.crc32(repr(value()).encode()))
    others = np.flatnonzero(sums != sums[0]).tolist()
    if others:
        raise InputError(
            f"{what}: differ between process 0 and processes {others}. Give all of them the same "
            "command and the same files"
        )


def gather(value: Any) -> np.ndarray:
    """An array of each process, stacked in their order; of one shape and type in all of them.

    As bytes: JAX makes 32 bits of 64 without a word (2**40 becomes 0).
    """
    from jax.experimental.multihost_utils import process_allgather

    own = np.ascontiguousarray(value)
    found = np.asarray(process_allgather(np.frombuffer(own.tobytes(), np.uint8), tiled=True))
    return found.view(own.dtype).reshape(-1, *np.shape(value))


def whole(arrays: Any) -> Any:
    """A tree of JAX arrays whose shards may be on several hosts, as NumPy arrays in each."""
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(arrays, tiled=True)
