"""The options of `generate` on a command line, by their names."""

import argparse
import inspect
import json
import re
from dataclasses import fields
from typing import Any

from jaxllm.generation.options import OF_SAMPLING, Options

# What a program asks for, and a stop string has an option of its own, given repeatedly.
_OTHERS = ("stop_strings", "return_dict_in_generate", "output_scores", "output_logits")


def add_to(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of `Options`; values are JSON, or text."""
    group = parser.add_argument_group("generation", "As in transformers' generate.")
    meanings = _meanings()
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends a text; repeatedly")
    for field in fields(Options):
        if field.name in _OTHERS:
            continue
        flag: dict[str, Any] = {"nargs": "?", "const": True} if field.type is bool else {}
        said = "by the model's files" if field.default in (None, ()) else json.dumps(field.default)
        group.add_argument(
            f"--{field.name}",
            type=_value,
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=f"{meanings[field.name]} (default {said})".replace("%", "%%"),
            **flag,
        )


def _meanings() -> dict[str, str]:
    """What the docstring of `Options` says of each field, without its full stop."""
    attributes = inspect.cleandoc(Options.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in found}


def given_in(options: argparse.Namespace) -> dict[str, Any]:
    """What a command line gives for `generate`; an option of sampling asks for sampling."""
    names = [field.name for field in fields(Options)]
    given = {name: x for name, x in vars(options).items() if name in names}
    if options.stop:
        given["stop_strings"] = options.stop
    if not given.keys().isdisjoint(OF_SAMPLING):
        given.setdefault("do_sample", True)
    return given


def _value(text: str) -> Any:
    """A number, true, false, null or a list, as JSON has them; else the text."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
