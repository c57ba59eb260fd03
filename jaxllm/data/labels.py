"""The label column to arrays: ids of names, sets of names, or numbers."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np


class Labels:
    """Checks labels as they are read, learns their names if none are given, and gives the array.

    Args:
        problem_type: as in the configuration; None = there are no labels.
        names: label names in the order of their ids; None = whatever names come, sorted (as numbers
            if all are whole numbers).
    """

    def __init__(self, problem_type: str | None, names: list[str] | None):
        self._problem_type = problem_type
        self._codes = {name: code for code, name in enumerate(names or [])}
        self.given = names
        self.learning = names is None and problem_type not in (None, "regression")
        self._values: list[Any] = []
        self._parse: Callable[[Any], tuple[Any, str | None]] = {
            None: lambda value: (None, None),
            "regression": _number,
            "multi_label_classification": self._set,
        }.get(problem_type, self._single)

    def read(self, value: Any) -> tuple[Any, str | None]:
        """The label that `value` stands for, or why it is none."""
        if value == "" and self._problem_type == "multi_label_classification":
            return [], None  # an empty cell is an empty set
        if self._problem_type is not None and (value is None or value == ""):
            return None, "missing label"
        return self._parse(value)

    def learn(self, label: Any) -> None:
        """Takes the names of a label into those known."""
        if self.learning:
            for name in [label] if isinstance(label, str) else label:
                self._codes.setdefault(name, len(self._codes))

    def append(self, label: Any) -> None:
        """Adds the label of the next example."""
        self.learn(label)
        if isinstance(label, str):
            label = self._codes[label]
        elif isinstance(label, list):
            label = [self._codes[name] for name in label]
        self._values.append(label)

    def finish(self) -> tuple[np.ndarray | None, list[str]]:
        """The labels of all examples, and the names in the order of their ids.

        int32[n] | float32[n] (regression) | float32[n, C] (several labels) | None.
        """
        names = list(self._codes)
        if self._problem_type is None:
            return None, []
        if self._problem_type == "regression":
            return np.array(self._values, np.float32), []
        if self.learning:
            whole = all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)
            names.sort(key=(lambda name: (int(name), name)) if whole else None)
        ids = np.array([names.index(name) for name in self._codes], np.int32)
        if self._problem_type == "multi_label_classification":
            array = np.zeros((len(self._values), len(names)), np.float32)
            for row, codes in zip(array, self._values, strict=True):
                row[ids[codes]] = 1.0
            return array, names
        return ids[np.array(self._values, np.int32)], names

    def _single(self, value: Any) -> tuple[str | None, str | None]:
        name = _name(value)
        if name is None:
            return None, f"label of type {type(value).__name__}"
        if not name:
            return None, "missing label"
        if not self.learning and name not in self._codes:
            return None, f"unknown label {name[:40]!r}"
        return name, None

    def _set(self, value: Any) -> tuple[list[str] | None, str | None]:
        if isinstance(value, str):
            value = [part for part in value.split("|") if part.strip()]
        if not isinstance(value, list):
            value = [value]
        labels = []
        for item in value:
            label, fault = self._single(item)
            if label is None:
                return None, fault
            labels.append(label)
        return labels, None


def _name(value: Any) -> str | None:
    """A label's name: text as it is, a number or truth value as JSON writes it."""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def _number(value: Any) -> tuple[float | None, str | None]:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return (number, None) if math.isfinite(number) else (None, "label that is not a number")
