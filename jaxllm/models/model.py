"""A model is a stack and a head; its parameters are one tree without that division."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]  # nested dict of arrays


class Model(nnx.Module):
    """Calls the head with the stack that it ends.

    Attributes whose names begin with an underscore are left out of parameter paths, so that
    those of a stack are the same in every model: `blocks/attention/query/kernel`.
    """

    def __init__(self, stack: nnx.Module, head: nnx.Module):
        self._stack, self._head = stack, head

    @property
    def stack(self) -> Any:
        return self._stack

    @property
    def head(self) -> Any:
        return self._head

    def __call__(self, input_ids: jax.Array, **inputs: Any) -> Any:
        return self.head(self.stack, input_ids, **inputs)


@dataclass(frozen=True)
class Graph:
    """A module without its parameters; a value, so that a compiled program can be kept by it.

    paths: where the parameters are in the module.
    """

    graphdef: Any
    paths: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, module: nnx.Module) -> "tuple[Graph, Params]":
        """(the graph, the parameters: a nested dict of arrays)."""
        graphdef, state = nnx.split(module)
        leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
        paths = tuple(tuple(part.key for part in path) for path, _ in leaves)
        params: Params = {}
        for path, (_, x) in zip(paths, leaves, strict=True):
            *parents, last = _public(path)
            node = params
            for name in parents:
                node = node.setdefault(name, {})
            if last in node:
                raise ValueError(f"stack and head both have a parameter {'/'.join(_public(path))}")
            node[last] = x
        return cls(graphdef, paths), params

    def merge(self, params: Params) -> Any:
        """The module with these parameters."""
        state: Params = {}
        for path in self.paths:
            x: Any = params
            for name in _public(path):
                x = x[name]
            *parents, last = path
            node = state
            for name in parents:
                node = node.setdefault(name, {})
            node[last] = x
        return nnx.merge(self.graphdef, state)


def _public(path: tuple[str, ...]) -> list[str]:
    return [name for name in path if not name.startswith("_")]
