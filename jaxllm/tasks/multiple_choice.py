"""Multiple choice: a score for each choice of a question, softmax over those of the same one."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config
from jaxllm.data.builder import second_text
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.questions import Questions, load_questions
from jaxllm.data.tokenizer import Encoder
from jaxllm.errors import InputError
from jaxllm.metrics.classification import softmax
from jaxllm.prediction.batched import BatchSizes, EncodedLine, Predictor
from jaxllm.prediction.classification import short
from jaxllm.prediction.inputs import InputFormat, RowError, column, parse_object
from jaxllm.prediction.texts import no_tokens, rows_of
from jaxllm.pretrained import hf
from jaxllm.tasks.evaluation import Evaluator
from jaxllm.tasks.head import fitted
from jaxllm.tasks.model import SINGLE, SavedModel, check_fit
from jaxllm.tasks.storage import OneModel
from jaxllm.tasks.task import Task
from jaxllm.training import losses
from jaxllm.training.objectives import Apply, Objective, labelled
from jaxllm.training.step import make_eval_step

HEAD = "multiple-choice"
METRICS = ("accuracy", "loss")  # F1 and the like of places of choices would mean nothing


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    data = config.data
    train = None if saved is not None else load_questions(data, "train", tokenizer)
    dev = load_questions(data, "dev", tokenizer) if data.has_dev else None
    warn_of_overlap(train, dev)
    model_config = saved or hf.load_config(config.model.path, **config.model.config)
    new = fitted(config, [], HEAD).new if saved is None else frozenset()
    check_fit(model_config, tokenizer, config.data.max_length, pair=True)
    metric = config.train.metric or METRICS[0]
    if metric not in METRICS:
        raise InputError(f"train.metric: found {metric!r}, expected one of {', '.join(METRICS)}")
    loss_fn = partial(losses.cross_entropy, label_smoothing=config.train.label_smoothing)
    form = InputFormat.of(config)
    if train is not None:
        form = dataclasses.replace(form, max_length=data.max_length // train.choices)

    def objective(apply: Apply) -> Objective:
        assert train is not None
        return labelled(by_question(apply, train.choices), loss_fn)

    return Task(
        model=OneModel(HEAD, model_config, new=new),
        train=train,
        reads_word_table_only=True,
        objective=objective,
        evaluator=None if dev is None else partial(_evaluator, config, dev),
        metric=metric,
        save_extras=form.save,
    )


def by_question(apply: Apply, choices: int) -> Apply:
    """`apply` with the scores [B, P * C] of texts as logits [B, P, C] of questions."""

    def logits(params: Any, **inputs: Any) -> Any:
        output = apply(params, **inputs)
        scores = output.logits
        return dataclasses.replace(output, logits=scores.reshape(scores.shape[0], -1, choices))

    return logits


class ChoiceEvaluator(Evaluator):
    """As for classification into places of choices, but judged by accuracy alone."""

    def _metrics(self, logits_NC: np.ndarray, loss: float) -> dict[str, float]:
        values = super()._metrics(logits_NC, loss)
        return {name: values[name] for name in METRICS}

    def _draw(self, logits_NC: np.ndarray, directory: Path) -> None:
        """Nothing: places are no classes."""


def _evaluator(config: Config, dev: Questions, apply: Apply, mesh: Mesh) -> Evaluator:
    objective = labelled(by_question(apply, dev.choices), losses.cross_entropy)
    return ChoiceEvaluator(
        examples=dev,
        data=config.data,
        problem_type=SINGLE,
        label_names=[str(place) for place in range(dev.choices)],
        batch_size=config.train.eval_batch_size,
        mesh=mesh,
        eval_step=make_eval_step(objective, mesh),
    )


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

    def parse(self, line: bytes) -> _Choices:
        form = self.form
        row = parse_object(line, form.text)
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


def _choices_of(row: dict[str, Any], columns: list[str]) -> list[str]:
    if len(columns) > 1:
        return [column(row, name) for name in columns]
    choices = row.get(columns[0])
    if not isinstance(choices, list) or not choices:
        raise RowError(f"the column {columns[0]!r}: expected a list of choices")
    return [column({f"{columns[0]}[{i}]": x}, f"{columns[0]}[{i}]") for i, x in enumerate(choices)]
