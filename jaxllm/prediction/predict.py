"""`jaxllm predict`: JSON lines in, JSON lines out, an answer for every line and in their order.

Lines are read in windows, so that memory is bounded; in a window rows are sorted by length and
batched into a few static shapes. Where the input pauses, as a conversation over pipes does, the
lines that are there are answered. A bad line is answered with an error.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxllm.errors import InputError
from jaxllm.files import writing
from jaxllm.prediction.inputs import RowError, read_line
from jaxllm.prediction.lines import LineReader
from jaxllm.prediction.loaded import Kind, LoadedModel

logger = logging.getLogger("jaxllm")


def predict(
    model: str, input: str, output: str, batch_size: int = 32, *, kinds: Mapping[str, Kind]
) -> dict[str, int]:
    """Answers every line of `input` with one line of `output`, in order.

    Args:
        model: a directory, Hub id or package: with a model of a task that has a predictor.
        input: a file of JSON lines, `-` = standard input: objects with the text columns that the
            model was trained with (`jaxllm.json` beside its weights; without that file those that
            `InputFormat.load` names), or bare strings.
        output: the file to write, `-` = standard output; an object a line, as the task's predictor
            says. A bad line: `error` and `line`.
        batch_size: rows of a batch; rounded up to a multiple of the devices.
        kinds: tasks by name.

    Returns:
        How many `rows` there were, and of them `errors` and `truncated`.

    Raises:
        InputError: no such input or model, a model without the head, an unwritable output.
    """
    _check_files(input, output)
    predictor = LoadedModel.load(model, batch_size, kinds, key="--batch_size").predictor
    counts = {"rows": 0, "errors": 0, "truncated": 0}
    # First the input, then the output: of two named pipes the other side has to know the order.
    with _reader(input, predictor.window) as windows, _writer(output) as sink:
        for window in windows:
            if not counts["rows"]:
                window[0] = window[0].removeprefix(b"\xef\xbb\xbf")
            lines = list(map(_row, window))
            for answer in predictor.answers(lines, first_line=counts["rows"] + 1):
                counts["rows"] += 1
                if "error" in answer and not counts["errors"]:
                    logger.warning("the first error: line %d: %s", counts["rows"], answer["error"])
                counts["errors"] += "error" in answer
                counts["truncated"] += "truncated" in answer
                sink.write(_json(answer, sink.encoding) + "\n")
            sink.flush()
    logger.info(
        "predicted %d rows: %d answered with an error, %d truncated; output: %s",
        *counts.values(),
        "standard output" if output == "-" else output,
    )
    return counts


def _check_files(input: str, output: str) -> None:
    """Tells a wrong name before a model is loaded. Pipes and devices are files, too."""
    # os.path: of a name that no file can have these say no, where pathlib raises.
    if input == "-" and getattr(sys.stdin, "buffer", None) is None:
        raise InputError("--input -: standard input is closed; give a file of JSON lines")
    if input != "-" and (os.path.isdir(input) or not os.path.exists(input)):
        found = "a directory" if os.path.isdir(input) else "no such file"
        raise InputError(f"--input {input}: {found}; expected a file of JSON lines, or -")
    if output == "-":
        if sys.stdout is None:
            raise InputError("--output -: standard output is closed; give a file to write")
        return
    parent = os.path.dirname(output) or "."
    if os.path.isdir(output) or not os.path.isdir(parent):
        found = "a directory" if os.path.isdir(output) else f"there is no directory {parent}"
        raise InputError(f"--output {output}: {found}; expected a file in an existing directory")
    if input != "-" and os.path.exists(output) and os.path.samefile(input, output):
        raise InputError(f"--output {output}: this is the input; give another name")


def _reader(input: str, size: int) -> LineReader:
    name = f"--input {input}"
    if input == "-":
        stdin = sys.stdin.buffer
        # Its buffer is locked while a thread waits in it, which ends a process in a fatal error.
        return LineReader(getattr(stdin, "raw", stdin), name, size, keep_open=True)
    try:
        return LineReader(open(input, "rb", buffering=0), name, size)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error


def _row(line: bytes) -> Any:
    """The row of a line, or, where it cannot be read, the RowError that says why."""
    try:
        return read_line(line)
    except RowError as error:
        return error


def _json(answer: dict[str, Any], encoding: str | None) -> str:
    """`answer` in one line, in characters that `encoding` has; JSON can spell all others."""
    line = json.dumps(answer, ensure_ascii=False)
    try:
        line.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(answer)
    return line


@contextlib.contextmanager
def _writer(output: str) -> Iterator[TextIO]:
    """Standard output, a pipe or device, or a file that gets its name when it is complete."""
    if output == "-":
        yield sys.stdout
        return
    with writing(output, "Nothing was changed; make room, or give another --output."):
        target = Path(output).resolve()  # a link stays, what it points to is replaced
        if target.exists() and not target.is_file():
            with open(target, "w", encoding="utf-8") as file:
                yield file
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
