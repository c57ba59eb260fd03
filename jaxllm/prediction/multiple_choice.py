"""Answers questions with the likeliest of their choices: prediction of multiple choice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm.data.builder import second_text
from jaxllm.data.tokenizer import Encoder
from jaxllm.metrics.classification import softmax
from jaxllm.prediction.batched import BatchSizes, EncodedLine, Predictor
from jaxllm.prediction.classification import short
from jaxllm.prediction.inputs import RowError, column, columns
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.texts import no_tokens, rows_of

_Choices = tuple[str, str | None, list[str]]  # the text, how each choice begins, the choices


@dataclass(frozen=True)
class ChoicePredictor(Predictor):
    """`label`: the place of the likeliest choice from 0; `choice`: its text; `score` and
    `probabilities` of all, which may be any number.
    """

    encoder: Encoder

    @classmethod
    def of(cls, model: SavedModel, batch_sizes: BatchSizes) -> "ChoicePredictor":
        """The predictor of a saved model."""
        form = model.form
        encoder = Encoder(model.tokenizer, form.max_length, form.truncation, pair=True)
        return cls(form, batch_sizes, model.forward(lambda output: output.logits), encoder)

    def parse(self, row: Any) -> _Choices:
        form = self.form
        row = columns(row, form)
        text = column(row, form.text)
        choices = _choices_of(row, form.choices or ["choices"])
        pair = form.text_pair
        start = column(row, pair) if pair is not None and row.get(pair) else None
        return text, start, choices

    def encode(self, asked: list[_Choices]) -> list[EncodedLine | RowError]:
        """A row for each choice."""
        return [self._encoded(*line) for line in asked]

    def _encoded(self, text: str, start: str | None, choices: list[str]) -> EncodedLine | RowError:
        pairs = [second_text(start, choice) for choice in choices]
        encoded = self.encoder.encode([text] * len(pairs), pairs)
        if not encoded.lengths.all():
            longest = int(encoded.full_lengths.argmax())
            return no_tokens("a choice", encoded, longest, self.form)
        truncated = bool((encoded.full_lengths > encoded.lengths).any())
        return EncodedLine(rows_of(encoded), truncated, choices)

    def answer(self, asked: list[str], outputs: list[Any]) -> dict[str, Any]:
        shares = softmax(np.array(outputs))
        best = int(np.argmax(shares))
        return {
            "label": best,
            "choice": asked[best],
            "score": short(shares[best]),
            "probabilities": [short(share) for share in shares],
        }


def _choices_of(row: Mapping[str, Any], names: list[str]) -> list[str]:
    if len(names) > 1:
        return [column(row, name) for name in names]
    choices = row.get(names[0])
    if not isinstance(choices, list | tuple) or not choices:
        raise RowError(f"the column {names[0]!r}: expected a list of choices")
    return [column({f"{names[0]}[{i}]": x}, f"{names[0]}[{i}]") for i, x in enumerate(choices)]
