"""Parameter paths and trees: a nested dict of arrays to `blocks/mlp/up/kernel` and back.

The only place for it. A path is a string with `/` between its names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def path_name(path: tuple) -> str:
    """`blocks/mlp/up/kernel` for a key path of jax.tree_util."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_params(f: Callable[[str, Any], Any], tree: Any) -> Any:
    """`f(path, leaf)` in the place of each leaf of a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, x: f(path_name(path), x), tree)


def flatten(tree: Any) -> dict[str, Any]:
    """{"blocks/mlp/up/kernel": array, …} of any registered tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): x for path, x in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of paths and leaves.

    Raises:
        ValueError: a path that goes on behind a leaf.
    """
    nested: dict[str, Any] = {}
    for path, x in flat.items():
        *parents, last = path.split("/")
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: {name} is a leaf")
        node[last] = x
    return nested


def leaf_at(tree: Any, path: str) -> Any:
    """What a nested dict has at `path`: a leaf, or a tree."""
    for name in path.split("/"):
        tree = tree[name]
    return tree
