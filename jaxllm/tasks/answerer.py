"""Answers lines of question and context: prediction of extractive question answering."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from jaxllm.config_fields import QAConfig
from jaxllm.data.squad import Faults, Question, Questions
from jaxllm.data.windows import WindowEncoder
from jaxllm.tasks.answers import Answers, best_answers
from jaxllm.tasks.batched import Row, run
from jaxllm.tasks.classifier import short
from jaxllm.tasks.inputs import InputFormat, RowError, parse_line
from jaxllm.tasks.model import SavedModel


@dataclass(frozen=True)
class Answerer:
    """`answer`, its `score` (probability among the n best), `start` and `end` in characters of the
    context; `null_odds`, where a question may have no answer, and then `answer` can be "" at 0.
    `truncated` is true where the question was cut.
    """

    encoder: WindowEncoder
    form: InputFormat
    qa: QAConfig
    nullable: bool
    batch_size: int
    scores: Callable[[dict[str, np.ndarray]], Any]  # rows [B, T] -> (start, end) logits [B, T]

    @classmethod
    def of(cls, model: SavedModel, batch_size: int) -> "Answerer":
        """The predictor of a saved model."""
        settings = dict(model.form.qa or {})
        nullable = bool(settings.pop("nullable", True))
        qa = QAConfig(**settings)
        return cls(
            WindowEncoder(model.tokenizer, model.form.max_length, qa),
            model.form,
            qa,
            nullable,
            batch_size,
            model.forward(lambda output: (output.start_logits, output.end_logits)),
        )

    def answers(self, lines: list[bytes], first_line: int) -> list[dict[str, Any]]:
        """One answer for each line; `first_line` is the number of the first, from 1."""
        result: list[dict[str, Any]] = [{} for _ in lines]
        asked = Questions([], [])
        for i, line in enumerate(lines):
            try:
                question, context = parse_line(line, self.form)
            except RowError as error:
                result[i] = {"error": str(error), "line": first_line + i}
                continue
            assert context is not None
            asked.questions.append(Question(str(i), "", i, question, len(asked.contexts), ()))
            asked.contexts.append(context)
        faults = Faults("input")
        windows, kept = self.encoder.windows(asked, faults)
        for i in {q.number for q in asked.questions} - {q.number for q in kept.questions}:
            message = "the question or the context has no token"
            result[i] = {"error": message, "line": first_line + i}
        if not kept.questions:
            return result
        bounds = windows.offsets.tolist()
        rows = [
            Row(windows.tokens[begin:end], windows.type_ids[begin:end])
            for begin, end in pairwise(bounds)
        ]
        outputs = run(
            rows, self.scores, batch_size=self.batch_size, max_length=self.form.max_length
        )
        starts, ends = (
            np.concatenate(
                [out[k][: len(row.tokens)] for row, out in zip(rows, outputs, strict=True)]
            )
            for k in (0, 1)
        )
        found = best_answers(windows, kept, starts, ends, self.qa, nullable=self.nullable)
        cut = set(windows.cut.tolist())
        for k, (of_line, answers) in enumerate(zip(kept.questions, found, strict=True)):
            result[of_line.number] = self._answer(answers)
            if k in cut:
                result[of_line.number]["truncated"] = True
        return result

    def _answer(self, answers: Answers) -> dict[str, Any]:
        chosen = answers.best
        if self.nullable and answers.null_odds > self.qa.null_threshold:
            chosen = next(answer for answer in answers.n_best if not answer.text)
        answer = {
            "answer": chosen.text,
            "score": short(chosen.probability),
            "start": chosen.start,
            "end": chosen.end,
        }
        return answer | ({"null_odds": short(answers.null_odds)} if self.nullable else {})
