"""Switches off an XLA fusion that miscompiles on CPU, before any backend starts.

jaxlib 0.10.2 and 0.11.2 compile ``jnp.sum((e @ jnp.full_like(e, c)) * e, -1)`` on CPU into code
that gives NaN or 2e37 for e [64, 64] where 1e2 is right, without a word. The fault is in fusions
with a reduction: ``--xla_cpu_experimental_ynn_fusion_type=-reduce`` turns off those alone and the
results are right. An empty value turns off all, matrix products included: a training step is then
10 % slower with AVX-512, and 4 % faster without. XLA aborts the process on a flag it does not know,
so it is added by version only.
"""

import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path

logger = logging.getLogger("jaxllm")

FLAG = "xla_cpu_experimental_ynn_fusion_type"
FIRST_AFFECTED = (0, 10, 2)
LAST_AFFECTED = (0, 11, 2)

_unsaid: list[str] = []  # what apply() did, until a logger that shows INFO has heard it


def affected(version: str) -> bool:
    """Whether this version of jaxlib, such as ``"0.10.2"``, has the faulty fusion."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    return FIRST_AFFECTED <= numbers <= LAST_AFFECTED


def setting(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The flag with the value that is faster on this CPU; both give right results."""
    try:
        wide = "avx512f" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        wide = False
    return f"--{FLAG}={'-reduce' if wide else ''}"


def apply(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Adds the flag to ``XLA_FLAGS`` when jaxlib is affected; returns whether it did.

    A setting of the flag that is already there is left alone. When JAX's backends have started
    without it, it is too late: that is a warning, and nothing is changed.
    """
    version = importlib.metadata.version("jaxlib")
    flags = environ.get("XLA_FLAGS", "")
    if not affected(version) or FLAG in flags:
        return False
    if backends_started():
        logger.warning(
            "jaxlib %s can compute wrong numbers on CPU and JAX has already started: import jaxllm "
            "before the first JAX computation, or set XLA_FLAGS=%s in the environment",
            version,
            setting(),
        )
        return False
    added = setting()
    environ["XLA_FLAGS"] = f"{flags} {added}".strip()
    _unsaid.append(f"jaxlib {version} miscompiles a fusion on CPU: added {added} to XLA_FLAGS")
    return True


def withdraw(environ: MutableMapping[str, str] = os.environ) -> None:
    """Takes back what apply() did and nobody has heard of; for a process that is to start anew."""
    if _unsaid:
        environ["XLA_FLAGS"] = environ["XLA_FLAGS"].replace(setting(), "").strip()
        _unsaid.clear()


def announce() -> None:
    """Logs what apply() did, once, as soon as the level of the logger lets INFO through.

    The guard runs when jaxllm is imported, which is before the command line can set up logging.
    """
    while _unsaid and logger.isEnabledFor(logging.INFO):
        logger.info(_unsaid.pop())


def backends_started() -> bool:
    """Whether JAX has been imported and has set up its devices; asking does neither."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
