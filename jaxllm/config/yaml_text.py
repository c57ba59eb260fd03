"""YAML as jaxllm reads and writes it: 2e-5 is a number, and a small text stays small when read."""

import re
from typing import Any

import yaml

MOST_CHARACTERS = 4 * 2**20  # PyYAML reads about 0.1 MB a second
MOST_VALUES = 10**6  # with every alias written out: ten lines of aliases can stand for 10^10


class Loader(yaml.SafeLoader):
    pass


class Dumper(yaml.SafeDumper):
    pass


for _yaml in (Loader, Dumper):  # the dumper must know, too, to quote the text "2e-5"
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$"),
        list("-+.0123456789"),
    )


def compose(text: str) -> yaml.Node | None:
    """The root of a text's nodes; None where it is empty.

    Raises:
        yaml.YAMLError: it is not YAML, or too large.
        RecursionError: it is too deep.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
    root = yaml.compose(text, Loader=Loader)
    if root is not None and _size(root, {}) > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
    return root


def load(text: str) -> Any:
    """The value of a text; errors as in `compose`."""
    root = compose(text)
    return None if root is None else Loader("").construct_document(root)


def dump(value: Any, *, ascii: bool = False) -> str:
    """`value` as YAML, its keys in their order; with `ascii`, other characters are escaped."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=not ascii)


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes a tree has; one within itself has more than is allowed."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]
