"""Extractive question answering: windows over contexts, the loss of spans, EM and F1."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config
from jaxllm.data.fit import check_fit
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.squad import Questions
from jaxllm.data.window_cache import load_windows
from jaxllm.data.windows import Windows
from jaxllm.files import write_atomic
from jaxllm.metrics.answers import SCORINGS, answer_metrics
from jaxllm.metrics.classification import Sums, check_finite
from jaxllm.models import Apply
from jaxllm.prediction.answers import Answers, best_answers
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import OneModel
from jaxllm.tasks.evaluation import listed, outputs_of, read_summary
from jaxllm.tasks.task import Task, chosen_metric
from jaxllm.training.objectives import spans
from jaxllm.training.step import make_eval_step

HEAD = "question-answering"


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    data, qa = config.data, config.qa
    train = load_windows(data, qa, "train", tokenizer) if saved is None else None
    dev = load_windows(data, qa, "dev", tokenizer) if data.has_dev else None
    warn_of_overlap(train and train[1], dev and dev[1], "question")
    nullable = any(part[1].unanswerable for part in (train, dev) if part is not None)
    model_config = saved
    if saved is None:
        model_config = hf.load_config(config.model.path, **{"num_labels": 2} | config.model.config)
    check_fit(model_config, tokenizer, config.data.max_length, pair=True)

    def evaluator(apply: Apply, mesh: Mesh) -> SpanEvaluator:
        assert dev is not None
        return SpanEvaluator(*dev, config, nullable, mesh, make_eval_step(spans(apply), mesh))

    return Task(
        model=OneModel(HEAD, model_config),
        train=None if train is None else train[0],
        reads_word_table_only=True,
        objective=spans,
        evaluator=None if dev is None else evaluator,
        metric=_metric(config, nullable),
        save_extras=InputFormat(
            task=HEAD,
            text="question",
            text_pair="context",
            max_length=data.max_length,
            qa=asdict(qa) | {"nullable": nullable},
        ).save,
    )


def _metric(config: Config, nullable: bool) -> str:
    scoring = SCORINGS[config.qa.scoring]
    known = answer_metrics(scoring, [["a"]], [""], np.zeros(1) if nullable else None)
    if nullable:  # of questions without an answer, too
        known |= answer_metrics(scoring, [[]], [""], np.zeros(1))
    return chosen_metric(config, [*known, "loss"], "f1")


@dataclass(frozen=True)
class SpanEvaluator:
    """Questions with answers and how to judge a model on them.

    nullable: whether a question can go without an answer.
    eval_step: `params, batch -> ({"loss": (sum, weight)}, (start_logits, end_logits) [B, T])`.
    """

    windows: Windows
    questions: Questions
    config: Config
    nullable: bool
    mesh: Mesh
    eval_step: Callable[[Any, dict[str, jax.Array]], tuple[dict[str, Any], Any]]

    def answers(self, params: Any) -> tuple[list[Answers], float]:
        """(answers to each question, mean loss of the windows).

        Raises:
            RuntimeError: a window did not come up exactly once.
            InputError: scores that are not finite.
        """
        windows, sums = self.windows, Sums()
        logits = np.full((2, len(windows.tokens)), np.nan, np.float32)
        for values, outputs, index_BP in outputs_of(
            windows,
            partial(self.eval_step, params),
            data=self.config.data,
            batch_size=self.config.train.eval_batch_size,
            mesh=self.mesh,
        ):
            sums.add({"loss": values["loss"]})
            for index_P, *row in zip(index_BP, *outputs, strict=True):
                at = 0  # the windows of a row stand one after the other
                for i in index_P[index_P >= 0]:
                    begin, end = windows.offsets[i : i + 2]
                    for k, scores_T in enumerate(row):
                        logits[k, begin:end] = scores_T[at : at + end - begin]
                    at += end - begin
        check_finite(logits.T, "tokens")
        found = best_answers(
            windows, self.questions, logits[0], logits[1], self.config.qa, nullable=self.nullable
        )
        return found, sums.means()["loss"]

    def metrics(self, params: Any) -> dict[str, float]:
        """`answer_metrics`, in percent, and `loss`."""
        return self._metrics(*self.answers(params))

    def _metrics(self, found: list[Answers], loss: float) -> dict[str, float]:
        qa = self.config.qa
        values = answer_metrics(
            SCORINGS[qa.scoring],
            [[text for text, _ in question.answers] for question in self.questions.questions],
            [answers.best.text for answers in found],
            np.array([answers.null_odds for answers in found]) if self.nullable else None,
            qa.null_threshold,
        )
        return values | {"loss": loss}

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes, in the format of SQuAD's scripts, predictions.json, nbest_predictions.json and,
        where a question may have no answer, null_odds.json; returns the metrics and the report.
        """
        found, loss = self.answers(params)
        values = self._metrics(found, loss)
        if jax.process_index() == 0:
            ids = [question.id for question in self.questions.questions]
            files: dict[str, list[Any]] = {
                "predictions": [self._text(answers) for answers in found],
                "nbest_predictions": [_n_best(answers) for answers in found],
            }
            if self.nullable:
                files["null_odds"] = [answers.null_odds for answers in found]
            for name, column in files.items():
                content = dict(zip(ids, column, strict=True))
                content_text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
                write_atomic(directory / f"{name}.json", content_text)
        return values, listed(read_summary(self.windows.report), values)

    def _text(self, answers: Answers) -> str:
        silent = self.nullable and answers.null_odds > self.config.qa.null_threshold
        return "" if silent else answers.best.text


def _n_best(answers: Answers) -> list[dict[str, Any]]:
    names = ("text", "probability", "start_logit", "end_logit")
    return [{name: getattr(answer, name) for name in names} for answer in answers.n_best]
