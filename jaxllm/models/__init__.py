"""Model families: which module a transformers config and a task name, and its parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import InputError
from jaxllm.models import bert, modernbert_heads

Params = dict[str, Any]  # nested dict of arrays

# transformers' model_type -> task -> module class. "base" is the model without a head.
FAMILIES: dict[str, dict[str, Callable[..., nnx.Module]]] = {
    "bert": {
        "base": bert.BertModel,
        "masked-lm": bert.BertForMaskedLM,
        "sequence-classification": bert.BertForSequenceClassification,
    },
    "modernbert": {
        "base": modernbert_heads.ModernBertModel,
        "masked-lm": modernbert_heads.ModernBertForMaskedLM,
        "sequence-classification": modernbert_heads.ModernBertForSequenceClassification,
        "token-classification": modernbert_heads.ModernBertForTokenClassification,
        "question-answering": modernbert_heads.ModernBertForQuestionAnswering,
        "multiple-choice": modernbert_heads.ModernBertForMultipleChoice,
    },
}


def build(
    config: Any,
    task: str,
    *,
    rngs: nnx.Rngs,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int = 1,
) -> nnx.Module:
    """The module of `task` for a transformers config, with random parameters drawn from `rngs`."""
    heads = FAMILIES.get(config.model_type)
    if heads is None:
        raise InputError(
            f"model_type={config.model_type!r} is not implemented; "
            f"expected one of {sorted(FAMILIES)}"
        )
    if task not in heads:
        raise InputError(
            f"{config.model_type} has no head for task {task!r}; expected one of {sorted(heads)}"
        )
    return heads[task](config, dtype=jnp.dtype(dtype), rngs=rngs, remat=remat, unroll=unroll)


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
