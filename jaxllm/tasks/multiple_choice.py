"""Multiple choice: a score for each choice of a question, softmax over those of the same one."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.config.fields import Config
from jaxllm.data.fit import check_fit
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.questions import Questions, load_questions
from jaxllm.errors import InputError
from jaxllm.models import Apply
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.pretrained.labels import SINGLE
from jaxllm.pretrained.storage import OneModel
from jaxllm.tasks import choice_likelihood
from jaxllm.tasks.evaluation import Evaluator
from jaxllm.tasks.head import fitted
from jaxllm.tasks.task import Task, chosen_metric
from jaxllm.training import losses
from jaxllm.training.objectives import Objective, labelled
from jaxllm.training.step import make_eval_step

HEAD = "multiple-choice"
METRICS = ("accuracy", "loss")  # F1 and the like of places of choices would mean nothing


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    data = config.data
    model_config = saved or hf.load_config(config.model.path, **config.model.config)
    family, shots = models.family_of(model_config), data.shots
    if HEAD not in family.heads and choice_likelihood.HEAD in family.heads:
        if saved is None:
            raise InputError(
                f"model.task: found {HEAD}, but {model_config.model_type} has no such head to "
                "train; expected an encoder. `jaxllm evaluate` judges the choices of a causal "
                "language model by their likelihood"
            )
        return choice_likelihood.prepare(config, tokenizer, saved)
    if shots:
        raise InputError(
            f"data.shots: found {shots}, expected 0, as {model_config.model_type} has a head for "
            "choices; examples are for causal language models"
        )
    train = None if saved is not None else load_questions(data, "train", tokenizer)
    dev = load_questions(data, "dev", tokenizer) if data.has_dev else None
    warn_of_overlap(train, dev)
    new = fitted(config, [], HEAD).new if saved is None else frozenset()
    check_fit(model_config, tokenizer, config.data.max_length, pair=True)
    metric = chosen_metric(config, METRICS, METRICS[0])
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
