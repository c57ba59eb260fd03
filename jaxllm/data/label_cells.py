"""One cell of a label column, taken apart: the items in it, and the names that they mean.

The rules are those in the docstring of `jaxllm.data.labels`.
"""

import ast
import io
import itertools
import json
import math
import re
import tokenize
import warnings
from collections import Counter
from typing import Any

MISSING = "missing label"
MASKED = (-1, -100)  # ids that stand for no label, in data sets of the Hub and in PyTorch
_NO_AGREEMENT = f"{MISSING}: '-', which SNLI has for none; where it is one, list it in data.labels"
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_NUMBER = r"[0-9]+(?:\.0*)?"
_NUMBERS = re.compile(rf"\[?\s*{_NUMBER}(?:(?:\s*[,;]\s*|\s+){_NUMBER})+\s*\]?")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_LONGEST_LIST = 10_000  # characters of a list in a cell that Python's parser is given


class LabelNames:
    """The names of labels, and which of them an item means.

    Args:
        names: in the order of their ids.
        told: the user has said which ids they have, so that whole numbers and 0/1 vectors can be
            read by them. Names that are but numbered tell it themselves.
    """

    def __init__(self, names: list[str], *, told: bool):
        self._exact = set(names)
        numbers = any(whole(name) is not None for name in names)
        self._ids = names if (told and not numbers) or unnamed(names) else []
        counts = Counter(map(_key, names))
        self._alike = {key: name for name in names if counts[key := _key(name)] == 1}
        self.separable = not any(re.search("[,;]", name) for name in names)

    def __contains__(self, name: str | None) -> bool:
        return name in self._exact

    def find(self, name: str) -> str | None:
        """The name that is meant: the same, else the one alike but for case or for how a whole
        number is written, else that of an id; None where there is none.
        """
        if name in self._exact:
            return name
        key = _key(name)
        if key in self._alike:
            return self._alike[key]
        number = whole(name)
        if number is not None and 0 <= number < len(self._ids):
            return self._ids[number]
        return None

    def masks(self, name: str) -> bool:
        """Whether `name` is an id that stands for no label."""
        return bool(self._ids) and whole(name) in MASKED


def unnamed(names: list[str]) -> bool:
    """Whether they are transformers' LABEL_0, LABEL_1, … of a model that nobody gave names."""
    return bool(names) and names == [f"LABEL_{i}" for i in range(len(names))]


def item_name(value: Any) -> tuple[str, None] | tuple[None, str]:
    """(an item's name: text as it is, a number or truth value as JSON writes it; why it has none).

    One of the two is None.
    """
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None, MISSING
    if isinstance(value, bool | int | float):
        return json.dumps(value), None
    if not isinstance(value, str):
        return None, f"label of type {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a character: "\ud83d"
        return None, "label that is not valid Unicode"
    name = value.strip()
    return (name, None) if name else (None, MISSING)


def meant(name: str, names: LabelNames | None) -> tuple[str, None] | tuple[None, str]:
    """(the label that an item's name means; why it means none). `names` None: they are learned."""
    found = name if names is None else names.find(name)
    if name == "-" and (names is None or found is None):
        return None, _NO_AGREEMENT
    if found is not None:
        return found, None
    assert names is not None
    return None, MISSING if names.masks(name) else f"unknown label {name[:40]!r}"


def whole(item: Any) -> int | None:
    """The whole number that an item is, as a number or as text; else None."""
    if isinstance(item, float):
        return int(item) if item.is_integer() else None
    if isinstance(item, str):
        text = item.strip()
        return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) and len(text) < 20 else None
    return item if isinstance(item, int) else None


def flag(item: Any) -> bool | None:
    """What an item says that is 0 or 1, true or false; else None."""
    if isinstance(item, str) and item.strip().lower() in ("true", "false"):
        return item.strip().lower() == "true"
    number = whole(item)
    return bool(number) if number in (0, 1) else None


def several_numbers(text: str) -> list[str] | None:
    """The whole numbers in a text that holds two or more and nothing else; else None."""
    return re.findall(_NUMBER, text) if _NUMBERS.fullmatch(text) else None


def written_list(text: str) -> list[Any] | None:
    """The items of a text that is a list as JSON, or a list, tuple or set as Python, writes it."""
    if _BRACKETS.get(text[:1]) != text[-1:] or len(text) > _LONGEST_LIST:
        return None
    try:
        return list(json.loads(text)) if text[0] == "[" else _python_list(text)
    except (ValueError, RecursionError):
        return _python_list(text)


def _python_list(text: str) -> list[Any] | None:
    try:
        tokens = [t.type for t in tokenize.generate_tokens(io.StringIO(text).readline)]
        solid = (kind for kind in tokens if kind != tokenize.NL)
        if any(a == b == tokenize.STRING for a, b in itertools.pairwise(solid)):
            return None  # Python joins 'a' 'b', two names as numpy prints them, into 'ab'
        with warnings.catch_warnings(action="ignore"):  # of a backslash that escapes nothing
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    return list(value) if isinstance(value, list | tuple | set) else None


def _key(name: str) -> str:
    """Equal for names that differ in case only, and for the ways to write one whole number."""
    number = whole(name)
    return name.casefold() if number is None else str(number)
