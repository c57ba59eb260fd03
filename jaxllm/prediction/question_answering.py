"""Answers lines of question and context: prediction of extractive question answering."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from jaxllm.config.fields import QAConfig
from jaxllm.data.squad import Faults, Question, Questions
from jaxllm.data.windows import WindowEncoder, Windows
from jaxllm.prediction.answers import best_answers
from jaxllm.prediction.batched import BatchSizes, EncodedLine, Predictor, Row
from jaxllm.prediction.classification import short
from jaxllm.prediction.inputs import RowError, texts_of
from jaxllm.prediction.saved import SavedModel


@dataclass(frozen=True)
class Answerer(Predictor):
    """`answer`, its `score` (probability among the n best), `start` and `end` in characters of the
    context; `null_odds`, where a question may have no answer, and then `answer` can be "" at 0.
    `truncated` tells that the question was cut; a long context is read in windows.
    """

    encoder: WindowEncoder
    qa: QAConfig
    nullable: bool

    @classmethod
    def of(cls, model: SavedModel, batch_sizes: BatchSizes) -> "Answerer":
        """The predictor of a saved model."""
        qa, nullable = model.form.qa_settings()
        encoder = WindowEncoder(model.tokenizer, model.form.max_length, qa)
        logits = model.forward(lambda output: (output.start_logits, output.end_logits))
        return cls(model.form, batch_sizes, logits, encoder, qa, nullable)

    def parse(self, row: Any) -> tuple[str, str | None]:
        return texts_of(row, self.form)

    def encode(self, asked: list[tuple[str, str]]) -> list[EncodedLine | RowError]:
        questions = [Question(str(i), "", i, q, i, ()) for i, (q, _) in enumerate(asked)]
        contexts = [context for _, context in asked]
        windows, kept = self.encoder.windows(Questions(questions, contexts), Faults("input"))
        none = RowError("the question or the context has no token")
        result: list[EncodedLine | RowError] = [none] * len(asked)
        cut = set(windows.cut.tolist())
        for k, question in enumerate(kept.questions):
            own = windows.of(k)
            rows = [
                Row(own.tokens[begin:end], own.type_ids[begin:end])
                for begin, end in pairwise(own.offsets.tolist())
            ]
            alone = Questions([question], contexts)
            result[question.number] = EncodedLine(rows, k in cut, (own, alone))
        return result

    def answer(self, asked: tuple[Windows, Questions], outputs: list[Any]) -> dict[str, Any]:
        windows, question = asked
        starts, ends = (
            np.concatenate([x[:n] for x, n in zip(logits, windows.lengths, strict=True)])
            for logits in zip(*outputs, strict=True)
        )
        [answers] = best_answers(windows, question, starts, ends, self.qa, nullable=self.nullable)
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
