"""A model is a stack and a head; its parameters are one tree without that division."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxllm.trees import flatten, leaf_at, unflatten

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

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        *,
        inputs_embeds: jax.Array | None = None,
        **inputs: Any,
    ) -> Any:
        """The head's output. Its `tokens` are `input_ids` [B, T], or in their place `inputs_embeds`
        [B, T, E], floating, which stand for the rows of the word table.
        """
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        return self.head(self.stack, tokens, **inputs)


@dataclass(frozen=True)
class Graph:
    """A module without its parameters; a value, so that a compiled program can be kept by it.

    paths: where in the module each parameter is.
    """

    graphdef: Any
    paths: tuple[str, ...]

    @classmethod
    def of(cls, module: nnx.Module) -> "tuple[Graph, Params]":
        """(the graph, the parameters: a nested dict of arrays)."""
        graphdef, state = nnx.split(module)
        flat = flatten(nnx.to_pure_dict(state))
        params = {_public(path): x for path, x in flat.items()}
        if len(params) < len(flat):
            raise ValueError(f"two parameters of stack and head have one path: {sorted(flat)}")
        return cls(graphdef, tuple(flat)), unflatten(params)

    def merge(self, params: Params) -> Any:
        """The module with these parameters."""
        state = {path: leaf_at(params, _public(path)) for path in self.paths}
        return nnx.merge(self.graphdef, unflatten(state))


def _public(path: str) -> str:
    return "/".join(name for name in path.split("/") if not name.startswith("_"))
