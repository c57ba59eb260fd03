"""The labels that the rows of a head stand for, and what becomes of the head of a checkpoint.

A head that comes with names goes on where the data have these names, in any order and case: its
order and spelling stand, and the ids of the data follow. Where they are other names, or of another
number, no row means what it meant, so the last layer, which has a row for each label, is new; all
below it, a pooler too, is kept.

A head whose labels are called LABEL_0, LABEL_1, … says nothing about them. It is taken to be for
the data's labels where the user has told their order (``data.labels``), or where they are the
numbers 0, 1, …, which is what such a head was trained on. Names that were found in the data, in the
order of the alphabet, tell nothing about its rows: a guess would be wrong half of the time, without
a word. So then it is new, too.
"""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm import models
from jaxllm.config.fields import Config
from jaxllm.data.label_cells import LabelNames, unnamed, whole
from jaxllm.errors import InputError
from jaxllm.pretrained import hf
from jaxllm.pretrained.labels import label_names
from jaxllm.trees import flatten

logger = logging.getLogger("jaxllm")


@dataclass(frozen=True)
class Head:
    """Labels and the rows of a head.

    Attributes:
        names: labels in the order of the head's rows; none for regression.
        order: int32[C], the row of each label of the data, in their order.
        new: paths of the parameters that are not those of the checkpoint.
    """

    names: list[str]
    order: np.ndarray
    new: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: list[str], new: frozenset[str] = frozenset()) -> "Head":
        """A head whose rows are in the order of the data's labels."""
        return cls(names, np.arange(len(names), dtype=np.int32), new)


def fitted(config: Config, names: list[str], task: str) -> Head:
    """The head to train for the data's labels `names`, none where it gives a number: that of the
    checkpoint, or a new one.

    Raises:
        InputError: the checkpoint's head is for other labels, and model.new_head is error.
    """
    path = config.model.path
    if path is None:
        return Head.of(names)
    directory = hf.resolve(path)
    saved = hf.load_config(directory)
    layer = _label_layer(saved, task)
    outputs = hf.stored_outputs(directory, saved, layer)
    if not outputs:  # no such head: loading tells that it is new
        return Head.of(names)
    old = [saved.id2label.get(i, "") for i in range(saved.num_labels)]
    own = models.family_of(saved).table.architecture(task)
    classes = saved.architectures or [own]
    if not names and outputs == {1}:
        return Head.of(names)
    if outputs == {len(names)} and own in classes:
        order = _rows(old, names, told=config.data.told_labels is not None)
        if order is not None:
            kept = names if unnamed(old) else old
            logger.info("%s: its head goes on, for %s", path, _listed(kept))
            return Head(kept, order)
    found = LabelNames(old, told=False)
    if unnamed(old) and len(old) == len(names):
        way_out = f"give the names of {', '.join(old)} as data.labels, in this order"
    elif names and None not in map(found.find, names):
        way_out = "give all its labels as data.labels"
    else:
        way_out = "take data that have its labels"
    wanted = _listed(names) if names else "numbers"
    told = f"{path}: its head ({classes[0]}) is for {_listed(old)}, but {wanted} are asked for"
    if config.model.new_head == "error":
        raise InputError(
            f"{told}; {way_out}, or set model.new_head: warn to train a new head in place of it"
        )
    logger.warning(
        "%s: the head's last layer is dropped, and a new one trained (%s); everything below it is "
        "kept. To go on with this head, %s",
        *(told, ", ".join(sorted(layer)), way_out),
    )
    return Head.of(names, layer)


def matched(config: Config, saved: Any) -> Head:
    """The head of a saved model, which is to be judged on data with the labels of `config.data`.

    Raises:
        InputError: the data's labels are told, and are not the model's.
    """
    names, told = label_names(saved), config.data.told_labels
    if told is None:
        return Head.of(names)
    order = _rows(names, told, told=True) if len(names) == len(told) else None
    if order is None:
        key = "data.labels" if config.data.labels else "data.label"
        raise InputError(
            f"{key}: found {told}, but the model at {config.model.path} has {names}; expected "
            "these names, in any order, or null"
        )
    return Head(told if unnamed(names) else names, order)


def _rows(old: list[str], names: list[str], *, told: bool) -> np.ndarray | None:
    """int32[C], the row among `old` of each of as many `names`; None where that is not known."""
    same = np.arange(len(names), dtype=np.int32)
    if old == names or (unnamed(old) and (told or list(map(whole, names)) == same.tolist())):
        return same
    found = list(map(LabelNames(old, told=False).find, names))
    if None in found or len(set(found)) < len(old):
        return None
    return np.array([old.index(name) for name in found if name is not None], np.int32)


def _label_layer(model_config: Any, task: str) -> frozenset[str]:
    """The paths of the parameters that have a row for each label; of multiple choice, one row."""
    if task == "multiple-choice":
        return frozenset({"classifier/kernel", "classifier/bias"})
    wider = copy.copy(model_config)
    wider.num_labels = model_config.num_labels + 1
    shapes, others = (
        {path: x.shape for path, x in flatten(models.module_parts(c, task)[1]).items()}
        for c in (model_config, wider)
    )
    return frozenset(path for path, shape in shapes.items() if shape != others[path])


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:10])
    return f"{len(names)} labels ({shown}{', …' if len(names) > 10 else ''})"


def head_config(config: Config, names: list[str]) -> Any:
    """The transformers config at `model.path`, or of `model.config`, with a head for these labels.

    Raises:
        InputError: no such model, or attributes that are not implemented or that follow from the
            labels.
    """
    head: dict[str, Any] = {
        "num_labels": len(names) or 1,
        "problem_type": config.model.problem_type,
    }
    if names:
        head["id2label"] = dict(enumerate(names))
        head["label2id"] = {name: i for i, name in enumerate(names)}
    for name in ("num_labels", "id2label", "label2id", "problem_type"):
        if name in config.model.config:
            raise InputError(
                f"model.config: {name} follows from the labels; remove it, and give data.labels or "
                "model.problem_type instead"
            )
    return hf.load_config(config.model.path, **config.model.config, **head)


def check_head(config: Config, saved: Any) -> None:
    """Refuses a bare model before its missing labels are taken for the mistake."""
    bare = models.family_of(saved).table.architecture("base")
    task = config.model.task
    if task in models.family_of(saved).heads and saved.architectures == [bare]:
        raise InputError(
            f"{config.model.path}: the model has no {task} head, it is a {bare}; expected a model "
            "that `jaxllm train` wrote, or another with such a head"
        )
