"""Restarts a command with huge pages for what malloc hands out, where that is off by default.

XLA on CPU allocates a step's temporary memory anew each step, hundreds of MiB, so every step pays
for its page faults: a fine-tuning step of a 22M-parameter BERT took 227 ms with 4 KiB pages and 194
with huge ones (two cores). glibc (2.35 and later) asks the kernel for them when GLIBC_TUNABLES says
so at the start of the process; there is no later moment.
"""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from jaxllm.runtime import cpu_guard

TUNABLE = "glibc.malloc.hugetlb"
_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def add_tunable(environ: MutableMapping[str, str] = os.environ, modes: Path = _MODES) -> bool:
    """Adds the tunable to GLIBC_TUNABLES; returns whether a restart would gain by it.

    Not where the kernel gives huge pages to all or to none, and not over the user's own setting.
    """
    present = environ.get("GLIBC_TUNABLES", "")
    try:
        wanted = "[madvise]" in modes.read_text()
    except OSError:
        return False
    if not wanted or TUNABLE in present:
        return False
    environ["GLIBC_TUNABLES"] = ":".join(filter(None, [present, f"{TUNABLE}=1"]))
    return True


def restart() -> None:
    """Starts this very command again, as the same process, if that gains huge pages."""
    if sys.platform == "linux" and sys.orig_argv and add_tunable():
        cpu_guard.withdraw()  # else what is the guard's would be taken for the user's own setting
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
