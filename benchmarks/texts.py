"""The texts of a workload, the same for every side: random tokens of a fixed seed, or a file's."""

import functools
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.stepping import Batch
from benchmarks.workloads import MASKED, Workload
from jaxllm.errors import InputError

BATCHES = 4  # different ones, gone through in turns
GATE_ROWS = 4
MASK, FIRST = 4, 5  # ids
IGNORED = -100  # the label of a token that is not asked for


@dataclass(frozen=True)
class Text:
    """Tokens, some of them masked; what the masked ones were; a label for the whole."""

    ids: np.ndarray
    masked: np.ndarray
    originals: np.ndarray
    label: int


def texts(workload: Workload, vocabulary: int, count: int) -> list[Text]:
    """The first `count` texts of a workload; those of a file are gone through in turns."""
    lines = None if workload.lines is None else _lines(workload.lines)
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        if lines is None:
            length = _length(rng, workload)
            ids = rng.integers(FIRST, vocabulary, length, dtype=np.int32)
        else:
            ids = np.array(lines[number % len(lines)][: workload.length], np.int32)
            length = len(ids)
        masked = np.sort(rng.permutation(length)[: max(1, round(MASKED * length))])
        originals = ids[masked]
        if workload.kind == "mlm":
            ids[masked] = MASK
        found.append(Text(ids, masked, originals, int(rng.integers(2))))
    return found


def tokenize(file: str, tokenizer: str, output: Path) -> None:
    """Writes the lines of a text file (.gz is fine), shuffled, in tokens; not the empty ones.

    Raises:
        InputError: a file that cannot be read or has no text; no such tokenizer.
    """
    from jaxllm.data.tokenizer import load_tokenizer

    try:
        with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as lines:
            found = [line for line in map(str.strip, lines) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--text {file}: {error}") from error
    if not found:
        raise InputError(f"--text {file}: there is no text in it")
    np.random.default_rng(0).shuffle(found)
    output.write_text(json.dumps(load_tokenizer(tokenizer)(found)["input_ids"]), encoding="utf-8")


@functools.cache
def _lines(file: str) -> list[list[int]]:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def padded(workload: Workload, found: list[Text], length: int) -> dict[str, np.ndarray]:
    """A text a row of `length`, as transformers' models take it; a mask where there is padding."""
    shape = (len(found), length)
    ids, mask, labels = (np.full(shape, fill, np.int64) for fill in (0, 0, IGNORED))
    for row, text in enumerate(found):
        ids[row, : len(text.ids)] = text.ids
        mask[row, : len(text.ids)] = 1
        labels[row, text.masked] = text.originals
    arrays = {"input_ids": ids}
    if not mask.all():
        arrays["attention_mask"] = mask
    if workload.kind == "mlm":
        arrays["labels"] = labels
    elif workload.kind == "causal":  # the model itself compares each with the token before it
        arrays["labels"] = np.where(mask > 0, ids, IGNORED)
    elif workload.kind == "classify":
        arrays["labels"] = np.array([text.label for text in found])
    return arrays


def padded_batches(
    workload: Workload, vocabulary: int, count: int, height: int, *, one_shape: bool = False
) -> list[Batch]:
    """`count` batches of the first texts, see `padded`, as long as the longest text of each, as
    transformers' collators make them; `one_shape`: of all.
    """
    found = texts(workload, vocabulary, count * height)
    made = []
    for first in range(0, len(found), height):
        part = found[first : first + height]
        sizes = [len(text.ids) for text in part]
        length = row_of_all(workload, found) if one_shape else rounded(workload, max(sizes), 8)
        made.append(Batch(padded(workload, part, length), sum(sizes), height * length))
    return made


def row_of_all(workload: Workload, found: list[Text]) -> int:
    """Tokens of a row that any of the texts fits in: what a compiled step pads all of them to."""
    return rounded(workload, max(len(text.ids) for text in found), 64)


def rounded(workload: Workload, length: int, unit: int) -> int:
    """Up to a multiple of `unit`, but not above the workload's rows."""
    return min(-(-length // unit) * unit, workload.length)


def digest(x_ND: np.ndarray) -> float:
    """A figure of the vectors of all tokens, in any order, that a norm at their end leaves free."""
    direction_D = np.cos(np.arange(x_ND.shape[1]))
    return float(np.square(x_ND.astype(np.float64) @ direction_D).mean())


def _length(rng: np.random.Generator, workload: Workload) -> int:
    longest = workload.length
    if workload.texts == "uniform":
        return int(rng.integers(longest // 8, longest + 1))
    if workload.texts == "normal":  # ModernBERT's protocol: N(256, 64) in rows of 512
        return int(np.clip(rng.normal(longest / 2, longest / 8), longest // 32, longest))
    return longest
