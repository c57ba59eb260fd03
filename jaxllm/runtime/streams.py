"""Standard input and output as a program finds them: closed, full, broken, or of ASCII alone."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


def secure() -> None:
    """Makes the streams of this process safe to write to; a closed `sys.stdout` stays None."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Or a file that is opened next has this number, and what libraries print goes into it.
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """At the end, what was printed has arrived, or the OSError is raised here.

    Python flushes at exit, where nobody can answer to the error.
    """
    try:
        yield
    except SystemExit:  # --help has printed
        _flush()
        raise
    _flush()


def drop() -> None:
    """What standard output does not take is dropped, and not tried again at exit."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def can_print(text: str) -> bool:
    """Whether standard output has all characters of `text`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _flush() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        raise
