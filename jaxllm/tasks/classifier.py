"""Answers rows of text with labels, or with a number: prediction of a sequence classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm import metrics
from jaxllm.data.tokenizer import Encoder
from jaxllm.tasks.batched import Row, run
from jaxllm.tasks.inputs import InputFormat, RowError, parse_line
from jaxllm.tasks.model import SavedModel, label_names, problem_type


@dataclass(frozen=True)
class Classifier:
    """One label a row: `label`, `score`, `probabilities`; several: `labels` (those above 0.5),
    `probabilities`; regression: `value`. `truncated` is true where text was cut.
    """

    encoder: Encoder
    form: InputFormat
    problem_type: str
    label_names: list[str]
    batch_size: int
    logits: Callable[[dict[str, np.ndarray]], Any]  # rows [B, T] -> logits [B, C] on the device

    @classmethod
    def of(cls, model: SavedModel, batch_size: int) -> "Classifier":
        """The predictor of a saved model."""
        form, config = model.form, model.config
        pair = form.text_pair is not None
        return cls(
            Encoder(model.tokenizer, form.max_length, form.truncation, pair=pair),
            form,
            problem_type(config),
            label_names(config),
            batch_size,
            model.forward(lambda output: output.logits),
        )

    def answers(self, lines: list[bytes], first_line: int) -> list[dict[str, Any]]:
        """One answer for each line; `first_line` is the number of the first, from 1."""
        result: list[dict[str, Any]] = [{} for _ in lines]
        texts: dict[int, tuple[str, str | None]] = {}
        for i, line in enumerate(lines):
            try:
                texts[i] = parse_line(line, self.form)
            except RowError as error:
                result[i] = {"error": str(error), "line": first_line + i}
        rows = self._encode(texts)
        for i in [i for i, row in rows.items() if not len(row.tokens)]:
            count, limit = rows.pop(i).full_length, self.form.max_length
            expected = f"at most {limit}" if count else "at least one"
            message = f"the text has {count} tokens, expected {expected}"
            result[i] = {"error": message, "line": first_line + i}
        outputs = run(
            list(rows.values()),
            self.logits,
            batch_size=self.batch_size,
            max_length=self.form.max_length,
        )
        for (i, row), logits_C in zip(rows.items(), outputs, strict=True):
            result[i] = answer(self.problem_type, self.label_names, logits_C)
            if row.full_length > len(row.tokens):
                result[i]["truncated"] = True
        return result

    def _encode(self, texts: dict[int, tuple[str, str | None]]) -> "dict[int, _Text]":
        """Rows by line; single texts and pairs take a call each."""
        result: dict[int, _Text] = {}
        for paired in (False, True):
            chosen = [i for i, (_, pair) in texts.items() if (pair is not None) == paired]
            if not chosen:
                continue
            pairs = [pair for i in chosen if (pair := texts[i][1]) is not None]
            encoded = self.encoder.encode([texts[i][0] for i in chosen], pairs if paired else None)
            cuts = np.cumsum(encoded.lengths)[:-1]
            columns = (
                np.split(encoded.tokens, cuts),
                np.split(encoded.type_ids, cuts),
                encoded.full_lengths.tolist(),
            )
            texts_of = zip(chosen, zip(*columns, strict=True), strict=True)
            result |= {i: _Text(*row) for i, row in texts_of}
        return result


@dataclass(frozen=True)
class _Text(Row):
    """No tokens: too long, and not to be cut."""

    full_length: int  # before the cut


def answer(problem_type: str, label_names: list[str], logits_C: np.ndarray) -> dict[str, Any]:
    """The answer to a row as it is written; six significant digits."""
    if problem_type == "regression":
        return {"value": short(logits_C[0])}
    probability_C = metrics.probabilities(problem_type, logits_C)
    shares = dict(zip(label_names, map(short, probability_C), strict=True))
    if problem_type == "multi_label_classification":
        over = [n for n, p in zip(label_names, probability_C, strict=True) if p > metrics.THRESHOLD]
        return {"labels": over, "probabilities": shares}
    best = label_names[int(np.argmax(probability_C))]
    return {"label": best, "score": shares[best], "probabilities": shares}


def short(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{value:.6g}")
