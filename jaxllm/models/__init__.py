"""Model families: which module a transformers config and a task name, and its parameters."""

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.models import bert, distilbert, electra, modernbert, modernbert_heads, roberta
from jaxllm.models.encoder import Encoder

Params = dict[str, Any]  # nested dict of arrays
Heads = dict[str, Callable[..., nnx.Module]]

# transformers' model_type -> the module that says what its encoder is, of BERT and its kin.
ENCODERS = {
    "bert": bert,
    "distilbert": distilbert,
    "electra": electra,
    "roberta": roberta,
    "xlm-roberta": roberta,
}


def _heads(family: ModuleType, heads: Mapping[str, type[Encoder]]) -> Heads:
    def make(head: type[Encoder]) -> Callable[..., nnx.Module]:
        return lambda config, *, rngs, **options: head(family.spec(config, **options), rngs)

    return {task: make(head) for task, head in heads.items()}


# transformers' model_type -> task -> what makes the module, from a transformers config, `rngs`,
# `dtype`, `attention`, `remat` and `unroll`. "base" is the model without a head.
FAMILIES: dict[str, Heads] = {
    **{name: _heads(family, family.HEADS) for name, family in ENCODERS.items()},
    "modernbert": dict(modernbert_heads.HEADS),
}
# Likewise, modules that there are in training only: nothing in transformers is like them.
JOINT: dict[str, Heads] = {"electra": {"joint-pretraining": electra.joint}}


def build(
    config: Any,
    task: str,
    *,
    rngs: nnx.Rngs,
    dtype: str = "float32",
    **options: Any,
) -> nnx.Module:
    """The module of `task` for a transformers config, with random parameters drawn from `rngs`."""
    heads = FAMILIES.get(config.model_type)
    if heads is None:
        raise InputError(
            f"model_type={config.model_type!r} is not implemented; "
            f"expected one of {sorted(FAMILIES)}"
        )
    heads = heads | JOINT.get(config.model_type, {})
    if task not in heads:
        raise InputError(
            f"{config.model_type} has no head for task {task!r}; expected one of {sorted(heads)}"
        )
    return heads[task](config, dtype=jnp.dtype(dtype), rngs=rngs, **options)


def module_parts(config: Any, task: str, **options: Any) -> tuple[Any, Params]:
    """(graphdef, abstract parameters): the module split once, shapes only, nothing allocated."""
    abstract = nnx.eval_shape(lambda: build(config, task, rngs=nnx.Rngs(params=0), **options))
    graphdef, state = nnx.split(abstract)
    return graphdef, nnx.to_pure_dict(state)


def init_params(config: Any, task: str, seed: int) -> Params:
    """Random float32 parameters; jit it with `out_shardings` to have them born in place."""
    module = build(config, task, rngs=nnx.Rngs(params=jax.random.key(seed)))
    return nnx.to_pure_dict(nnx.split(module)[1])


def apply_fn(graphdef: Any) -> Callable[..., Any]:
    """The pure function `f(params, **inputs) -> output` of a split module."""

    def apply(params: Params, **inputs: Any) -> Any:
        return nnx.merge(graphdef, params)(**inputs)

    return apply


def windows(config: Any) -> list[float]:
    """Of each layer, how many tokens a token sees at most; infinite where it sees all."""
    if config.model_type in ENCODERS:
        return [math.inf] * config.num_hidden_layers
    return modernbert.windows(config)


def max_tokens(config: Any) -> int:
    """Tokens of the longest example that the model has positions for."""
    family = ENCODERS.get(config.model_type)
    return config.max_position_embeddings if family is None else family.spec(config).max_tokens
