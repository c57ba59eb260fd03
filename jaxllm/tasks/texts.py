"""Answers rows of text, each by what the model gives for the row as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm.data.tokenizer import Encoder
from jaxllm.tasks.batched import Row, run
from jaxllm.tasks.inputs import InputFormat, RowError, parse_line
from jaxllm.tasks.model import SavedModel


@dataclass(frozen=True)
class TextPredictor:
    """Texts or pairs of texts to answers; `truncated` is true where text was cut.

    forward: rows [B, T] -> what answers them, [B, …] on the device.
    answer: what `forward` gives for one row, and its text -> its answer, or RowError.
    """

    encoder: Encoder
    form: InputFormat
    batch_size: int
    forward: Callable[[dict[str, np.ndarray]], Any]
    answer: Callable[[Any, str], dict[str, Any]]

    @classmethod
    def of(
        cls,
        model: SavedModel,
        batch_size: int,
        forward: Callable[[dict[str, np.ndarray]], Any],
        answer: Callable[[Any, str], dict[str, Any]],
    ) -> "TextPredictor":
        """For texts as the model was trained on."""
        form = model.form
        pair = form.text_pair is not None
        encoder = Encoder(model.tokenizer, form.max_length, form.truncation, pair=pair)
        return cls(encoder, form, batch_size, forward, answer)

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
            self.forward,
            batch_size=self.batch_size,
            max_length=self.form.max_length,
        )
        for (i, row), output in zip(rows.items(), outputs, strict=True):
            try:
                result[i] = self.answer(output, texts[i][0])
            except RowError as error:
                result[i] = {"error": str(error), "line": first_line + i}
                continue
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
