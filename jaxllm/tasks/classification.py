"""Sequence classification and regression: the data, the head, the loss and the metrics."""

import logging
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config
from jaxllm.data.corpus import Examples, load_examples
from jaxllm.data.fit import check_fit
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.errors import InputError
from jaxllm.metrics.classification import classification_metrics
from jaxllm.models import Apply
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained.labels import MULTI, SINGLE, problem_type
from jaxllm.pretrained.storage import OneModel
from jaxllm.tasks.evaluation import Evaluator
from jaxllm.tasks.head import Head, fitted, head_config, matched
from jaxllm.tasks.task import Task, chosen_metric
from jaxllm.training import losses
from jaxllm.training.objectives import labelled
from jaxllm.training.step import make_eval_step

logger = logging.getLogger("jaxllm")

HEAD = "sequence-classification"
# What chooses the best model where train.metric is null.
METRIC = {SINGLE: "accuracy", MULTI: "f1", "regression": "pearson"}


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    problem = config.model.problem_type
    train = dev = None
    told = config.data.told_labels
    if saved is None:
        train, found = load_examples(
            config.data, "train", tokenizer, problem_type=problem, labels=told
        )
        head = fitted(config, found, HEAD)
        train = train.reordered(head.order)
    else:
        _check_problem(config, saved)
        head = matched(config, saved)
        found = told or head.names
    if config.data.has_dev:
        dev, _ = load_examples(config.data, "dev", tokenizer, problem_type=problem, labels=found)
        warn_of_overlap(train, dev)
        dev = dev.reordered(head.order)
    names = head.names
    metric = check_metric(config, names)
    model_config = head_config(config, names) if saved is None else saved
    check_fit(
        model_config, tokenizer, config.data.max_length, pair=config.data.text_pair is not None
    )
    if problem == SINGLE and len(names) < 2:
        raise InputError(
            f"data.label: found {len(names)} labels {names}, expected two or more; name all of "
            "them in data.labels, or take another column"
        )
    loss_fn = training_loss(config, head, train)

    return Task(
        model=OneModel(HEAD, model_config, new=head.new),
        train=train,
        reads_word_table_only=True,
        objective=lambda apply: labelled(apply, loss_fn),
        evaluator=None if dev is None else partial(evaluator, config, dev, names),
        metric=metric,
        save_extras=InputFormat.of(config).save,
    )


def evaluator(
    config: Config, examples: Examples, names: list[str], apply: Apply, mesh: Mesh
) -> Evaluator:
    """Judges a model's pure function on labelled examples."""
    problem = config.model.problem_type
    # Plain: losses of runs with other smoothing or class weights stay comparable.
    objective = labelled(apply, _plain_loss(problem))
    return Evaluator(
        examples=examples,
        data=config.data,
        problem_type=problem,
        label_names=names,
        batch_size=config.train.eval_batch_size,
        mesh=mesh,
        eval_step=make_eval_step(objective, mesh),
    )


def _check_problem(config: Config, saved: Any) -> None:
    problem = problem_type(saved)
    if problem != config.model.problem_type:
        raise InputError(
            f"model.problem_type: found {config.model.problem_type}, but the model at "
            f"{config.model.path} was trained for {problem}; set model.problem_type={problem}"
        )


def check_metric(config: Config, names: list[str]) -> str:
    """The metric that chooses the best model; InputError where the labels `names` have no such."""
    problem = config.model.problem_type
    labels = np.zeros((1, len(names)) if problem == MULTI else 1)
    known = classification_metrics(problem, np.zeros((1, len(names) or 1)), labels, names)
    return chosen_metric(config, [*known, "loss"], METRIC[problem])


def training_loss(config: Config, head: Head, train: Examples | None) -> losses.LossFn:
    """The loss that the configuration asks for; InputError where it does not fit the labels.

    train: None where a saved model is only judged.
    """
    smoothing, weights = config.train.label_smoothing, config.train.class_weights
    if config.model.problem_type == SINGLE:
        return partial(
            losses.cross_entropy,
            label_smoothing=smoothing,
            class_weights=_class_weights(config, head, train),
        )
    if smoothing or weights:
        key = "label_smoothing" if smoothing else "class_weights"
        raise InputError(f"train.{key}: expected none, it is for one label a row ({SINGLE})")
    return _plain_loss(config.model.problem_type)


def _class_weights(config: Config, head: Head, train: Examples | None) -> tuple[float, ...] | None:
    """The weight of each label in the order of the head's rows."""
    wanted, names = config.train.class_weights, head.names
    if wanted is None or (wanted == "balanced" and train is None):
        return None
    if wanted == "balanced":
        assert train is not None
        assert train.labels is not None
        weights = balanced_weights(train.labels, len(names))
    else:
        if len(wanted) != len(names):
            raise InputError(
                f"train.class_weights: found {len(wanted)} weights, expected {len(names)}, one "
                f"for each of the labels {', '.join(names)}"
            )
        weights = np.array(wanted, float)
        if config.data.told_labels is not None:
            weights[head.order] = wanted
    pairs = zip(names, weights.tolist(), strict=True)
    logger.info("class weights: %s", ", ".join(f"{name} {weight:.4g}" for name, weight in pairs))
    return tuple(weights.tolist())


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """float64[classes]: n / (C * count) as scikit-learn's compute_class_weight("balanced"), of C
    classes that occur; 0 of one that does not. A label -1 is none.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    return counts.sum() / np.count_nonzero(counts) / np.maximum(counts, 1) * (counts > 0)


def _plain_loss(problem: str) -> losses.LossFn:
    if problem == MULTI:
        return losses.binary_cross_entropy
    return losses.mean_squared_error if problem == "regression" else losses.cross_entropy
