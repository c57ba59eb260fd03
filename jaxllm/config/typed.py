"""Values as the types of fields have them, and as a message tells them."""

import contextlib
import json
import os
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from jaxllm.errors import InputError

_UNIONS = (types.UnionType, Union)


def typed(where: str, value: Any, kind: Any) -> Any:
    """`value` as a `kind`, or an InputError that begins with `where`."""
    try:
        return _convert(value, kind)
    except (TypeError, OverflowError):  # an integer of 400 digits is no float
        pass
    hint = ""
    with contextlib.suppress(TypeError):
        _convert([value], kind)
        hint = f"; write a list, [{show(value)}]"
    if not hint and "str" in str(kind) and value is not None:
        hint = "; put text in quotes where YAML reads it as something else"
    raise InputError(f"{where}: found {show(value)}, expected {describe(kind)}{hint}")


def show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _convert(value: Any, kind: Any) -> Any:
    """`value` as a `kind`: an integer is a float as well; TypeError where it does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        for one in arguments:
            with contextlib.suppress(TypeError):
                return _convert(value, one)
        raise TypeError
    if origin is list and isinstance(value, list):
        return [_convert(v, arguments[0]) for v in value]
    if origin is dict and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return value
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind and not (kind is str and "\0" in value):  # no name of a file has it
        return value
    raise TypeError


def describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        return " or ".join(map(describe, arguments))
    if origin is list:
        named = {str: "text", int: "whole numbers", float: "numbers"}
        return f"a list of {named.get(arguments[0]) or ', '.join(get_args(arguments[0]))}"
    if origin is dict:
        return "names with values"
    if origin is Literal:
        return f"one of {', '.join(arguments)}" if len(arguments) > 1 else arguments[0]
    return {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        types.NoneType: "null",
    }[kind]


def plain(value: Any) -> Any:
    """A value of Python as YAML would have it: paths are text, tuples and arrays are lists, numbers
    of numpy and jax are those of Python.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
