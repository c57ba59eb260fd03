"""Answers rows of text, each by what the model gives for the row as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm.data.tokenizer import Encoded, Encoder
from jaxllm.prediction.batched import BatchSizes, EncodedLine, Predictor, Row
from jaxllm.prediction.inputs import InputFormat, RowError, texts_of
from jaxllm.prediction.saved import SavedModel


@dataclass(frozen=True)
class TextPredictor(Predictor):
    """Texts or pairs of texts to answers.

    tell: what `forward` gives for one row, and its text -> its answer, or RowError.
    """

    encoder: Encoder
    tell: Callable[[Any, str], dict[str, Any]]

    @classmethod
    def of(
        cls,
        model: SavedModel,
        batch_sizes: BatchSizes,
        forward: Callable[[dict[str, np.ndarray]], Any],
        tell: Callable[[Any, str], dict[str, Any]],
        *,
        prompt: str = "",
    ) -> "TextPredictor":
        """For texts as the model was trained on. `prompt`: what all of them begin with."""
        form = model.form
        pair = form.text_pair is not None
        encoder = Encoder(
            model.tokenizer, form.max_length, form.truncation, pair=pair, prompt=prompt
        )
        return cls(form, batch_sizes, forward, encoder, tell)

    def parse(self, row: Any) -> tuple[str, str | None]:
        return texts_of(row, self.form)

    def encode(self, asked: list[tuple[str, str | None]]) -> list[EncodedLine | RowError]:
        """Single texts and pairs take a call of the tokenizer each."""
        result: list[EncodedLine | RowError] = [RowError()] * len(asked)
        for paired in (False, True):
            chosen = [i for i, (_, pair) in enumerate(asked) if (pair is not None) == paired]
            if not chosen:
                continue
            texts = [asked[i][0] for i in chosen]
            pairs = [pair for _, pair in asked if pair is not None]
            encoded = self.encoder.encode(texts, pairs if paired else None)
            lengths = encoded.full_lengths.tolist()
            for k, (i, row) in enumerate(zip(chosen, rows_of(encoded), strict=True)):
                if len(row.tokens):
                    result[i] = EncodedLine([row], lengths[k] > len(row.tokens), asked[i][0])
                else:
                    result[i] = no_tokens("the text", encoded, k, self.form)
        return result

    def answer(self, asked: str, outputs: list[Any]) -> dict[str, Any]:
        return self.tell(outputs[0], asked)


def rows_of(encoded: Encoded) -> list[Row]:
    """The row of each text."""
    cuts = np.cumsum(encoded.lengths)[:-1]
    parts = zip(np.split(encoded.tokens, cuts), np.split(encoded.type_ids, cuts), strict=True)
    return [Row(*part) for part in parts]


def no_tokens(what: str, encoded: Encoded, i: int, form: InputFormat) -> RowError:
    """Of text i, which had no tokens, or had too many and was not to be cut."""
    expected = f"at most {form.max_length}" if encoded.full_lengths[i] else "at least one"
    return RowError(f"{what} has {encoded.count(i)} tokens, expected {expected}")
