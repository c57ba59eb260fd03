"""SIGTERM and Ctrl-C: asked for once, a run stops after its step; asked for twice, at once."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818  (it is no error)
    """A signal stopped the run after a step, and its state is saved; the message says how to go on.

    `exit_status` is the shell's: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered, in the main thread only.

    The first signal puts the handlers back that were there before, so the second one acts as if
    jaxllm had none (Ctrl-C: KeyboardInterrupt).
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore()
        # Not through logging: the handler may have interrupted a write to the same stream.
        name = signal.Signals(signum).name
        message = f"\njaxllm: {name}: finishing this step, then saving; once more to stop at once\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())

    def _restore(self) -> None:
        previous, self._previous = self._previous, {}
        for signum, handler in previous.items():
            # None: it was not set from Python, and cannot be put back from Python.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def received(self, step: int, every: int) -> int | None:
        """The signal that asks for a stop after `step`, or None.

        Several processes must stop after the same step, so they ask each other, at every
        `every`-th step only: that waits for all of them.
        """
        if jax.process_count() == 1:
            return self._signum
        if step % every:
            return None
        from jaxllm.runtime.processes import gather  # which knows `Interrupted`

        return int(gather(self._signum or 0).max()) or None
