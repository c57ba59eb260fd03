"""`jaxllm predict`: JSON lines in, JSON lines out, an answer for every line and in their order.

Lines are read in windows, so that memory is bounded and standard input works; in a window rows are
sorted by length and batched into a few static shapes. A bad line is answered with an error.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from jaxllm import metrics
from jaxllm.errors import InputError
from jaxllm.files import writing
from jaxllm.tasks.inputs import InputFormat, RowError, parse_line

if TYPE_CHECKING:
    from jaxllm.data.tokenizer import Encoder

logger = logging.getLogger("jaxllm")

WINDOW_BATCHES = 32  # lines held in memory: this many batches
SHORTEST_ROW = 16  # rows are padded to this many tokens times a power of two, up to max_length


def predict(model: str, input: str, output: str, batch_size: int = 32) -> dict[str, int]:
    """Answers every line of `input` with one line of `output`, in order.

    Args:
        model: a directory, Hub id or package: with a sequence-classification model.
        input: a file of JSON lines, `-` = standard input: objects with the text columns that the
            model was trained with (`jaxllm.json` beside its weights; without that file `text`, and
            `text_pair` where a row has it), or bare strings.
        output: the file to write, `-` = standard output. One label a row: `label`, `score`,
            `probabilities`; several: `labels` (those above 0.5), `probabilities`; regression:
            `value`. `truncated` is true where text was cut. A bad line: `error` and `line`.
        batch_size: rows of a batch; rounded up to a multiple of the devices.

    Returns:
        How many `rows` there were, and of them `errors` and `truncated`.

    Raises:
        InputError: no such input or model, a model without the head, an unwritable output.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: expected 1 or more")
    _check_files(input, output)
    predictor = load_predictor(model, batch_size)
    counts = {"rows": 0, "errors": 0, "truncated": 0}
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if input == "-" else stack.enter_context(_open(input))
        sink = stack.enter_context(_writer(output))
        lines = _lines(source, input)
        while window := list(islice(lines, predictor.batch_size * WINDOW_BATCHES)):
            for answer in answers(predictor, window, first_line=counts["rows"] + 1):
                counts["rows"] += 1
                counts["errors"] += "error" in answer
                counts["truncated"] += "truncated" in answer
                sink.write(json.dumps(answer, ensure_ascii=False) + "\n")
            sink.flush()
    logger.info(
        "predicted %d rows: %d answered with an error, %d truncated; output: %s",
        *counts.values(),
        "standard output" if output == "-" else output,
    )
    return counts


def _check_files(input: str, output: str) -> None:
    """Tells a wrong name before a model is loaded. Pipes and devices are files, too."""
    source, target = Path(input), Path(output)
    if input != "-" and (source.is_dir() or not source.exists()):
        found = "a directory" if source.is_dir() else "no such file"
        raise InputError(f"--input {input}: {found}; expected a file of JSON lines, or -")
    if output == "-":
        return
    if target.is_dir() or not target.parent.is_dir():
        found = "a directory" if target.is_dir() else f"there is no directory {target.parent}"
        raise InputError(f"--output {output}: {found}; expected a file in an existing directory")
    if input != "-" and target.exists() and target.samefile(source):
        raise InputError(f"--output {output}: this is the input; give another name")


def _open(input: str) -> IO[bytes]:
    try:
        return open(input, "rb")
    except OSError as error:
        raise InputError(f"--input {input}: cannot be read: {error.strerror}") from error


def _lines(source: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        for number, line in enumerate(source):
            yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
    except OSError as error:
        raise InputError(f"--input {name}: cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _writer(output: str) -> Iterator[IO[str]]:
    """Standard output, a pipe or device, or a file that gets its name when it is complete."""
    if output == "-":
        yield sys.stdout
        return
    target = Path(output).resolve()  # a link stays, what it points to is replaced
    with writing(output, "Nothing was changed; make room, or give another --output."):
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


@dataclass(frozen=True)
class Predictor:
    """A loaded model and how to ask it; made by `load_predictor`."""

    encoder: "Encoder"
    form: InputFormat
    problem_type: str
    label_names: list[str]
    batch_size: int
    logits: Callable[[dict[str, np.ndarray]], Any]  # rows [B, T] -> logits [B, C] on the device


def load_predictor(model: str, batch_size: int) -> Predictor:
    """Loads a model directory onto all devices of this host, batches split over them."""
    import jax

    from jaxllm.data.tokenizer import Encoder, load_tokenizer
    from jaxllm.models import apply_fn, max_tokens
    from jaxllm.pretrained import hf
    from jaxllm.sharding import batch_sharding, batch_shards, make_mesh
    from jaxllm.tasks.model import check_tokenizer, label_names, load_saved, problem_type

    mesh = make_mesh(devices=jax.local_devices())
    config = hf.load_config(model)
    directory, graphdef, params = load_saved(model, "sequence-classification", config, mesh)
    tokenizer = load_tokenizer(directory)
    check_tokenizer(tokenizer, config)
    form = InputFormat.load(
        directory, max_length=min(max_tokens(config), tokenizer.model_max_length)
    )
    apply = jax.jit(apply_fn(graphdef))

    def logits(rows: dict[str, np.ndarray]) -> jax.Array:
        with jax.set_mesh(mesh):
            return apply(params, **jax.device_put(rows, batch_sharding(mesh))).logits

    shards = batch_shards(mesh)
    return Predictor(
        Encoder(tokenizer, form.max_length, form.truncation, pair=form.text_pair is not None),
        form,
        problem_type(config),
        label_names(config),
        -(-batch_size // shards) * shards,
        logits,
    )


def answers(predictor: Predictor, lines: list[bytes], first_line: int) -> list[dict[str, Any]]:
    """One answer for each line; `first_line` is the number of the first, from 1."""
    result: list[dict[str, Any]] = [{} for _ in lines]
    texts: dict[int, tuple[str, str | None]] = {}
    for i, line in enumerate(lines):
        try:
            texts[i] = parse_line(line, predictor.form)
        except RowError as error:
            result[i] = {"error": str(error), "line": first_line + i}
    rows = _encode(predictor, texts)
    for i in [i for i, row in rows.items() if not len(row.tokens)]:
        count, limit = rows.pop(i).full_length, predictor.form.max_length
        expected = f"at most {limit}" if count else "at least one"
        message = f"the text has {count} tokens, expected {expected}"
        result[i] = {"error": message, "line": first_line + i}
    by_length = sorted(rows, key=lambda i: len(rows[i].tokens))
    size = predictor.batch_size
    batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    # All batches are dispatched before the first is read: the device never waits for the host.
    pending = [predictor.logits(_batch(predictor, [rows[i] for i in b])) for b in batches]
    for batch, logits in zip(batches, pending, strict=True):
        for i, logits_C in zip(batch, np.asarray(logits)[: len(batch)], strict=True):
            result[i] = answer(predictor.problem_type, predictor.label_names, logits_C)
            if rows[i].full_length > len(rows[i].tokens):
                result[i]["truncated"] = True
    return result


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray  # none: too long, and not to be cut
    type_ids: np.ndarray
    full_length: int  # before the cut


def _encode(predictor: Predictor, texts: dict[int, tuple[str, str | None]]) -> dict[int, _Row]:
    """Rows by line; single texts and pairs take a call each."""
    result: dict[int, _Row] = {}
    for paired in (False, True):
        chosen = [i for i, (_, pair) in texts.items() if (pair is not None) == paired]
        if not chosen:
            continue
        pairs = [pair for i in chosen if (pair := texts[i][1]) is not None]
        encoded = predictor.encoder.encode([texts[i][0] for i in chosen], pairs if paired else None)
        cuts = np.cumsum(encoded.lengths)[:-1]
        columns = (
            np.split(encoded.tokens, cuts),
            np.split(encoded.type_ids, cuts),
            encoded.full_lengths.tolist(),
        )
        result |= {i: _Row(*row) for i, row in zip(chosen, zip(*columns, strict=True), strict=True)}
    return result


def _batch(predictor: Predictor, rows: list[_Row]) -> dict[str, np.ndarray]:
    """int32 [B, T]; T is SHORTEST_ROW times a power of two, or max_length: few shapes compile."""
    longest = max(len(row.tokens) for row in rows)
    length = SHORTEST_ROW
    while length < longest:
        length *= 2
    shape = (predictor.batch_size, min(length, predictor.form.max_length))
    names = ("input_ids", "token_type_ids", "segment_ids")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    for i, row in enumerate(rows):
        count = len(row.tokens)
        batch["input_ids"][i, :count] = row.tokens
        batch["token_type_ids"][i, :count] = row.type_ids
        batch["segment_ids"][i, :count] = 1
    return batch


def answer(problem_type: str, label_names: list[str], logits_C: np.ndarray) -> dict[str, Any]:
    """The answer to a row as it is written; six significant digits."""
    if problem_type == "regression":
        return {"value": _short(logits_C[0])}
    probability_C = metrics.probabilities(problem_type, logits_C)
    shares = dict(zip(label_names, map(_short, probability_C), strict=True))
    if problem_type == "multi_label_classification":
        over = [n for n, p in zip(label_names, probability_C, strict=True) if p > metrics.THRESHOLD]
        return {"labels": over, "probabilities": shares}
    best = label_names[int(np.argmax(probability_C))]
    return {"label": best, "score": shares[best], "probabilities": shares}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
