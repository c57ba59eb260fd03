"""Keeps quiet what Orbax, TensorStore and asyncio print of a failed save, which we raise."""

import logging
import sys
from typing import Any

from jaxllm.files import disk_problem


class _FailedWrite(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or disk_problem(error) is None


def keep_quiet() -> None:
    """From now on, of a full disk nothing is printed but our own message; it was 300 lines."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    if any(isinstance(f, _FailedWrite) for f in loggers[0].filters):
        return
    for logger in loggers:
        logger.addFilter(_FailedWrite())
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        # Of a thread of TensorStore that has written something after Orbax has given up.
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = hook
