"""What a task asks of a configuration, and the metric that chooses its best model."""

from typing import get_args, get_type_hints

import pytest

from jaxllm.config.checks import check
from jaxllm.config.fields import Config, ModelConfig
from jaxllm.config.reading import changed
from jaxllm.errors import InputError
from jaxllm.tasks.registry import TASKS
from jaxllm.tasks.task import chosen_metric

CLASSES, TAGS, CHOICES = "sequence-classification", "token-classification", "multiple-choice"
PAIRS, CAUSAL = "sentence-embedding", "causal-lm"
NEEDS = {  # what a task needs beside the fields below
    CHOICES: {"data.choices": ["one", "two"]},
    PAIRS: {"data.text_pair": "other", "contrastive.score": "score"},
}
USED_BY = {  # a field, a value that is not its default, and the tasks that take it
    "data.choices": (["a", "b"], {CHOICES}),
    "data.shots": (5, {CHOICES}),
    "data.on_bad_row": ("repair", {TAGS}),
    "data.sampler": ("balanced", {CLASSES}),
    "model.tags": ("plain", {TAGS}),
    "contrastive.negative": ("worse", {PAIRS}),
    "contrastive.score": ("likeness", {PAIRS}),
    "contrastive.positive_from": (3.0, {PAIRS}),
    "train.label_smoothing": (0.1, {CLASSES, TAGS, CHOICES, CAUSAL}),
    "train.class_weights": ("balanced", {CLASSES, TAGS}),
}


def config_of(task, **values):
    base = {"model.path": "m", "model.task": task, "data.train": ["a.csv"]}
    return changed(Config(), {**base, **NEEDS.get(task, {}), **values})


def test_the_table_of_tasks_has_those_of_the_configuration():
    assert set(get_args(get_type_hints(ModelConfig)["task"])) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("key", USED_BY)
def test_a_field_that_the_task_has_no_use_for_is_refused(key, task):
    check(config_of(task))
    value, tasks = USED_BY[key]
    if task in tasks:
        check(config_of(task, **{key: value}))
        return
    with pytest.raises(InputError) as error:
        config_of(task, **{key: value})
    assert str(error.value).startswith(f"{key}: found {value!r}, expected ")


def test_the_metric_is_one_that_the_evaluation_gives():
    config = config_of(CLASSES)
    assert chosen_metric(config, ["f1", "loss"], "f1") == "f1"
    asked = config_of(CLASSES, **{"train.metric": "loss"})
    assert chosen_metric(asked, ["f1", "loss"], "f1") == "loss"
    wrong = config_of(CLASSES, **{"train.metric": "f2"})
    with pytest.raises(InputError) as error:
        chosen_metric(wrong, ["f1", "loss", "loss"], "f1", ", as it is")
    assert str(error.value) == "train.metric: found 'f2', expected one of f1, loss, as it is"
