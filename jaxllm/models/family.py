"""What a model family is: `Family`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxllm.errors import InputError
from jaxllm.models.compute import Compute
from jaxllm.models.model import Model
from jaxllm.names.table import Table

POSITIONS = {"position_ids": "max_position_embeddings"}
TYPES = {"token_type_ids": "type_vocab_size"}


@dataclass(frozen=True)
class Family:
    """The models of one `model_type` of transformers.

    Attributes:
        spec: a transformers config to the architecture, a value.
        stack: (spec, compute, rngs) to the part that all its models share.
        heads: task -> (spec, layers) to what the model ends in; "base" is the model without a head.
        max_tokens: a config to the tokens of the longest example that there are positions for.
        windows: a config to how many tokens a token sees at most, of each layer; infinite: all.
        ids: inputs that are rows of an embedding, and the config attribute with the rows it has.
        table: what its parameters and config attributes are called in checkpoints.
    """

    spec: Callable[[Any], Any]
    stack: Callable[[Any, Compute, nnx.Rngs], nnx.Module]
    heads: Mapping[str, Callable[..., nnx.Module]]
    max_tokens: Callable[[Any], int]
    windows: Callable[[Any], list[float]]
    ids: Mapping[str, str]
    table: Table

    def model(self, config: Any, task: str, compute: Compute, rngs: nnx.Rngs) -> Model:
        """The model of a config and a task, with random parameters drawn from `rngs`."""
        if task not in self.heads:
            raise InputError(
                f"{config.model_type} has no head for task {task!r}; expected one of "
                f"{sorted(self.heads)}"
            )
        spec = self.spec(config)
        stack = self.stack(spec, compute, rngs)
        return Model(stack, self.heads[task](spec, spec.layers(compute, rngs)))
