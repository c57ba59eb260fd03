"""The label column to arrays: ids of names, sets of names, or numbers.

What a cell means. First, an item, which is a cell of one label or one of several in a cell:

- Text is a name, without the spaces around it; a number or a truth value is the name that JSON
  writes for it. null, nothing, and the numbers NaN and Infinity are no label: "missing label". "-",
  which SNLI has where its annotators disagreed, is none either, unless ``data.labels`` has it.
- Where names are given, an item means the name that it equals; else the one that it equals but
  for case, or that is the same whole number (1, 1.0, 01), if there is one such name only.
- Where the user has told the order of the names (``data.labels``, or several columns) and no name
  is a whole number, a whole number is an id, from 0; -1 and -100 are "missing label". A model's
  LABEL_0, LABEL_1, … are told by themselves.

One label a row: a cell is an item. A list is refused, and so are several whole numbers ("8,20",
"1 0 0") that are not a name in ``data.labels``: these are several labels.

Several labels a row, in this order:

1. A cell that is a name in ``data.labels`` is this name, whatever characters it has.
2. An empty cell is an empty set. null is a missing label.
3. A list is its items: in JSON lines, and in text as JSON or Python writes it: ["a", "b"], ['a'],
   ('a', 'b'), {'a'}.
4. Text with | in it is the items between.
5. Several whole numbers with commas, semicolons or spaces between, in square brackets or not (as
   numpy prints a vector), are items, if the user has told the order of the names; else refused, as
   "8,20" may be two ids, two flags or a number.
6. Other text in square brackets is refused.
7. Text with commas or semicolons is the items between, if names are given, none of them has such a
   character, and all items are among them; else refused, as names may hold commas.
8. All other cells are one item.

A list of numbers or truth values, 0 or 1 each, is a 0/1 vector if it has a place for each label
that the user has told, in their order; it says which labels a row has. One in which 0 or 1 is there
twice is no set of ids, so if its length is another, or the user has not told the order, it is
refused. [0, 1] is ids 0 and 1 where there are three labels or more. Where a column has lists of
both kinds, or only pairs of 0 and 1 and nobody has told what they stand for, it is refused.

Several label columns: each has 0 or 1, true or false, and the labels are the columns' names.
"""

import math
import re
from collections import Counter
from typing import Any

import numpy as np

from jaxllm.data.label_cells import (
    MASKED,
    MISSING,
    LabelNames,
    flag,
    item_name,
    meant,
    several_numbers,
    whole,
    written_list,
)
from jaxllm.errors import InputError

MULTI = "multi_label_classification"
_SEVERAL = (
    "several labels where one is expected (set model.problem_type: multi_label_classification; a "
    "name that looks so has to be in data.labels)"
)
_UNREADABLE = (
    "list of labels that neither JSON nor Python reads (put | between names, or commas in the list)"
)
_NUMBERS = (
    "several numbers (ids or a 0/1 vector: list the names in the order of ids in data.labels)"
)
_PLACES = "0/1 vector that has not one place for each label"
_COMMAS = "commas or semicolons (put | between names, or list all names in data.labels)"
_SCALE = 3  # different numbers, not all whole, that look like a scale


class Labels:
    """Checks labels as they are read, learns their names if none are given, and gives the array.

    Args:
        problem_type: as in the configuration; None = there are no labels.
        names: label names in the order of their ids; None = whatever names come, sorted (as numbers
            if all are whole numbers).
        told: the user has told the order of `names`.
        columns: a row's label is a list with the cell of each of several columns, called `names`.
    """

    def __init__(
        self,
        problem_type: str | None,
        names: list[str] | None,
        *,
        told: bool = False,
        columns: bool = False,
    ):
        self._problem_type = problem_type
        self._codes = {name: code for code, name in enumerate(names or [])}
        self.given = names
        self.learning = names is None and problem_type not in (None, "regression")
        self._known = None if names is None else LabelNames(names, told=told)
        self._told, self._columns = told, columns
        self._values: list[Any] = []
        self._numbers: dict[str, list[Any]] = {}  # how a list of numbers was read -> the first

    def read(self, value: Any) -> tuple[Any, str | None]:
        """The label that `value` stands for, or why it is none."""
        if self._problem_type is None:
            return None, None
        if self._columns:
            return self._flags(value)
        if self._problem_type == "regression":
            return _number(value)
        return self._set(value) if self._problem_type == MULTI else self._single(value)

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

        Raises:
            InputError: lists of numbers can be read in two ways.
        """
        names = list(self._codes)
        if self._problem_type is None:
            return None, []
        if self._problem_type == "regression":
            return np.array(self._values, np.float32), []
        self._check_numbers()
        if self.learning:
            numbers = all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)
            names.sort(key=(lambda name: (int(name), name)) if numbers else None)
        ids = np.array([names.index(name) for name in self._codes], np.int32)
        if self._problem_type == MULTI:
            array = np.zeros((len(self._values), len(names)), np.float32)
            for row, codes in zip(array, self._values, strict=True):
                row[ids[codes]] = 1.0
            return array, names
        return ids[np.array(self._values, np.int32)], names

    def _label(self, item: Any) -> tuple[str | None, str | None]:
        """The name of the label that an item means, or why it means none."""
        name, fault = item_name(item)
        return (None, fault) if name is None else meant(name, self._known)

    def _is_name(self, item: Any) -> bool:
        """Whether an item is a given name as it stands, so that it needs no other meaning."""
        return self._known is not None and item_name(item)[0] in self._known

    def _single(self, value: Any) -> tuple[str | None, str | None]:
        if isinstance(value, list):
            return None, _SEVERAL
        if isinstance(value, str) and not self._is_name(value):
            text = value.strip()
            if several_numbers(text) or written_list(text) is not None:
                return None, _SEVERAL
        return self._label(value)

    def _set(self, value: Any) -> tuple[list[str] | None, str | None]:
        items, fault = self._items(value)
        if items is None:
            return None, fault
        flags = [flag(item) for item in items]
        if items and None not in flags:
            truths = len(items) > 1 and any(isinstance(item, bool) for item in items)
            vector = truths or len(set(flags)) < len(flags)  # it can be nothing else
            named = not vector and all(map(self._is_name, items))
            if self._told and len(items) == len(self._codes) and not named:
                self._numbers.setdefault("a 0/1 vector", items)
                return [name for name, there in zip(self._codes, flags, strict=True) if there], None
            if vector:
                return None, _PLACES if self._told else _NUMBERS
        if any(whole(item) is not None for item in items):
            self._numbers.setdefault("two ids" if len(items) == 2 else "ids", items)
        labels = []
        for item in items:
            label, fault = self._label(item)
            if label is None:
                return None, fault
            labels.append(label)
        return labels, None

    def _items(self, value: Any) -> tuple[list[Any] | None, str | None]:
        """The items of a cell of several labels, or why it cannot be taken apart."""
        if isinstance(value, list):
            return value, None
        if not isinstance(value, str):
            name, fault = item_name(value)
            return (None, fault) if name is None else ([value], None)
        text, known = value.strip(), self._known
        if not text:
            return [], None
        if self._is_name(text):
            return [text], None
        if (items := written_list(text)) is not None:
            return items, None
        if "|" in text:
            return [part for part in text.split("|") if part.strip()], None
        if (numbers := several_numbers(text)) is not None:
            return (numbers, None) if self._told else (None, _NUMBERS)
        if text[0] == "[" and text[-1] == "]":
            return None, _UNREADABLE
        if re.search("[,;]", text):
            parts = [part.strip() for part in re.split("[,;]", text) if part.strip()]
            if known is None or not known.separable or None in map(known.find, parts):
                return None, _COMMAS
            return parts, None
        return [text], None

    def _flags(self, cells: list[Any]) -> tuple[list[str] | None, str | None]:
        """The names of the columns that hold 1."""
        labels = []
        for name, cell in zip(self._codes, cells, strict=True):
            there = flag(cell)
            if item_name(cell)[1] == MISSING or whole(cell) in MASKED:
                return None, MISSING
            if there is None:
                return None, f"label other than 0 or 1 in column {name!r}"
            if there:
                labels.append(name)
        return labels, None

    def _check_numbers(self) -> None:
        """Refuses a column whose lists of 0 and 1 may be read in two ways."""
        found = [f"{items} as {how}" for how, items in self._numbers.items()]
        if self.learning and {whole(name) for name in self._codes} <= {0, 1}:
            if list(self._numbers) != ["two ids"]:
                return
            found.append("or as a 0/1 vector")
        elif "a 0/1 vector" not in self._numbers or len(found) < 2:
            return
        raise InputError(
            f"data.label: the column has cells that can be read in two ways, {', '.join(found)}; "
            "write the names of the labels, with | between, in place of numbers"
        )

    def remarks(self, names: list[str]) -> list[str]:
        """What looks wrong about the label names, if they were learned."""
        found = []
        numbers = [number for name in names if (number := _number(name)[0]) is not None]
        scale = len(numbers) == len(names) >= _SCALE and not all(map(float.is_integer, numbers))
        if scale and self._problem_type != MULTI:
            found.append(
                f"the labels are {len(names)} different numbers, {min(numbers):g} to "
                f"{max(numbers):g}, and each is a class of its own; if they are a scale, set "
                "model.problem_type: regression"
            )
        counts = Counter(map(str.casefold, names))
        if alike := [name for name in names if counts[name.casefold()] > 1]:
            found.append(
                f"labels that differ in case only are different labels: {', '.join(alike)}"
            )
        return found


def _number(value: Any) -> tuple[float | None, str | None]:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None, MISSING
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return (number, None) if math.isfinite(number) else (None, "label that is not a number")
