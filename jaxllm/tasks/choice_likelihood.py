"""Multiple choice without a head: a causal language model finds the right choice the likeliest.

A prompt is the question's text, behind `data.shots` answered questions of the training part, as in
Brown et al. (2020), "Language models are few-shot learners", section 2.4. Choices stand behind it
after a space.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config
from jaxllm.data.corpus import ReadReport
from jaxllm.data.fit import check_fit
from jaxllm.data.questions import Question, read_questions
from jaxllm.errors import InputError
from jaxllm.models import Apply
from jaxllm.nn.sharding import batch_shards
from jaxllm.prediction.likelihood import Judge, Judged, Rows, forward_of
from jaxllm.pretrained.storage import OneModel
from jaxllm.tasks.evaluation import listed, read_summary, write_predictions
from jaxllm.tasks.task import Evaluator, Task
from jaxllm.training.objectives import Objective

logger = logging.getLogger("jaxllm")

HEAD = "causal-lm"
BETWEEN = "\n\n"  # questions


def prepare(config: Config, tokenizer: Any, saved: Any) -> Task:
    """The task of judging the causal language model `saved` on the dev part, see `task.Prepare`."""
    data, shots = config.data, config.data.shots
    check_fit(saved, tokenizer, data.max_length, pair=False)
    evaluator: Callable[[Apply, Mesh], Evaluator] | None = None
    if data.has_dev:
        questions, report = read_questions(data, "dev")
        answered = read_questions(data, "train")[0] if shots else []
        prompts = prompts_of(questions, answered, shots, config.train.seed)
        rows = Rows(tokenizer, data.max_length)
        judged = _rows(questions, prompts, rows)

        def evaluate(apply: Apply, mesh: Mesh) -> LikelihoodEvaluator:
            forward = forward_of(apply, saved.vocab_size, mesh)
            shards = batch_shards(mesh)
            size = -(-config.train.eval_batch_size // shards) * shards
            return LikelihoodEvaluator(
                lambda params: Judge(partial(forward, params), rows, size),
                questions,
                report,
                judged,
            )

        evaluator = evaluate
    return Task(
        model=OneModel(HEAD, saved),
        train=None,
        reads_word_table_only=False,
        objective=_no_objective,
        evaluator=evaluator,
        metric="accuracy",
        save_extras=lambda directory: None,
    )


def prompts_of(
    questions: Sequence[Question], answered: Sequence[Question], shots: int, seed: int
) -> list[str]:
    """Of each question its text, behind so many of the answered ones.

    Those are drawn anew for each question, by the seed and the question's place in the part; a
    question is never its own example.

    Raises:
        InputError: there are not so many.
    """
    prompts = []
    for i, question in enumerate(questions):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, i))))
        order = generator.permutation(len(answered)).tolist()
        others = [answered[j] for j in order if answered[j].hash != question.hash][:shots]
        if len(others) < shots:
            raise InputError(
                f"data.shots: found {shots}, but data.train has {len(others)} questions to draw "
                f"from; expected at most {len(others)}"
            )
        examples = [f"{other.text} {other.choices[other.label]}" for other in others]
        prompts.append(BETWEEN.join([*examples, question.text]))
    return prompts


@dataclass(frozen=True)
class LikelihoodEvaluator:
    """Judges parameters on questions by the log-probabilities of their choices.

    Attributes:
        judge: of these parameters.
        questions, report: the dev part.
        rows: of each question, one for each choice.
    """

    judge: Callable[[Any], Judge]
    questions: list[Question]
    report: ReadReport
    rows: list[list[Judged]]

    def metrics(self, params: Any) -> dict[str, float]:
        """accuracy of the likeliest choice; accuracy_norm of the likeliest for its length in bytes;
        loss, the mean cross entropy of the right choice among all of its question.
        """
        return self._metrics(self._scores(params))

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes `predictions.jsonl`: the places of the right and of the likeliest choices, and the
        log-probabilities of all. Returns the metrics and the report's text.
        """
        scores = self._scores(params)
        if jax.process_index() == 0:
            write_predictions(directory, map(_prediction, self.questions, scores))
        values = self._metrics(scores)
        return values, listed(read_summary(self.report), values)

    def _scores(self, params: Any) -> list[np.ndarray]:
        """float64 [C] of each question: the log-probability of each choice."""
        found = iter(self.judge(params).judged([row for own in self.rows for row in own]))
        return [np.array([next(found).log_probability for _ in own]) for own in self.rows]

    def _metrics(self, scores: list[np.ndarray]) -> dict[str, float]:
        found = [_prediction(q, s) for q, s in zip(self.questions, scores, strict=True)]
        losses = [
            np.logaddexp.reduce(s) - s[q.label] for q, s in zip(self.questions, scores, strict=True)
        ]
        return {
            "accuracy": float(np.mean([x["predicted"] == x["label"] for x in found])),
            "accuracy_norm": float(np.mean([x["predicted_norm"] == x["label"] for x in found])),
            "loss": float(np.mean(losses)),
        }


def _prediction(question: Question, scores: np.ndarray) -> dict[str, Any]:
    lengths = [len(choice.encode()) for choice in question.choices]
    return {
        "row": question.row,
        "label": question.label,
        "predicted": int(scores.argmax()),
        "predicted_norm": int((scores / lengths).argmax()),
        "log_probabilities": scores.round(6).tolist(),
    }


def _rows(questions: list[Question], prompts: list[str], rows: Rows) -> list[list[Judged]]:
    """Of each question a row for each choice; warns of prompts that do not fit."""
    found = []
    for question, prompt in zip(questions, prompts, strict=True):
        try:
            found.append([rows.of_pair(prompt, f" {choice}") for choice in question.choices])
        except InputError as error:
            raise InputError(f"data.dev, row {question.row}: {error} (data.max_length)") from None
    cut = sum(any(row.is_cut for row in own) for own in found)
    if cut:
        logger.warning(
            "data.dev: %d of %d prompts are longer than data.max_length=%d and lose their "
            "beginning; raise it, or lower data.shots",
            *(cut, len(found), rows.max_length),
        )
    return found


def _no_objective(apply: Apply) -> Objective:
    raise AssertionError("a model without a head for choices is judged, not trained")
