"""Model families: which module a transformers config and a task name, and its parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.models import bert, distilbert, electra, gpt2, llama, modernbert_heads, roberta
from jaxllm.models.compute import Compute
from jaxllm.models.family import Family
from jaxllm.models.model import Graph, Model, Params

__all__ = ["FAMILIES", "Apply", "Compute", "Family", "Graph", "Model", "Params"]

FAMILIES: dict[str, Family] = {  # by transformers' model_type
    "bert": bert.FAMILY,
    "distilbert": distilbert.FAMILY,
    "electra": electra.FAMILY,
    "gpt2": gpt2.FAMILY,
    "llama": llama.LLAMA,
    "mistral": llama.MISTRAL,
    "modernbert": modernbert_heads.FAMILY,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "roberta": roberta.FAMILY,
    "xlm-roberta": roberta.XLM_FAMILY,
}
PLAIN = Compute()
Apply = Callable[..., Any]  # f(params, **inputs) -> a model's output


def family_of(config: Any) -> Family:
    """The family of a transformers config; InputError where it is not implemented."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise InputError(
            f"model_type={config.model_type!r} is not implemented; "
            f"expected one of {sorted(FAMILIES)}"
        )
    return family


def build(config: Any, task: str, compute: Compute = PLAIN, *, rngs: nnx.Rngs) -> Model:
    """The model of `task` for a transformers config, with random parameters drawn from `rngs`."""
    return family_of(config).model(config, task, compute, rngs)


def module_parts(config: Any, task: str, compute: Compute = PLAIN) -> tuple[Graph, Params]:
    """(graph, abstract parameters) of `build`'s model."""
    return parts_of(lambda: build(config, task, compute, rngs=nnx.Rngs(params=0)))


def parts_of(make: Callable[[], nnx.Module]) -> tuple[Graph, Params]:
    """(graph, abstract parameters): the module split once, shapes only, nothing allocated."""
    return Graph.of(nnx.eval_shape(make))


def init_params(config: Any, task: str, seed: int) -> Params:
    """Random float32 parameters; jit it with `out_shardings` to have them born in place."""
    return Graph.of(build(config, task, rngs=nnx.Rngs(params=jax.random.key(seed))))[1]


def apply_fn(graph: Graph) -> Callable[..., Any]:
    """The pure function `f(params, **inputs) -> output` of a split module."""

    def apply(params: Params, **inputs: Any) -> Any:
        return graph.merge(params)(**inputs)

    return apply


def windows(config: Any) -> list[float]:
    """Of each layer, how many tokens a token sees at most; infinite where it sees all."""
    return family_of(config).windows(config)


def max_tokens(config: Any) -> int:
    """Tokens of the longest example that the model has positions for."""
    return family_of(config).max_tokens(config)
