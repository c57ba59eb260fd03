"""Parameters of another vocabulary: their first rows stay, new rows are about the mean of the old.

As transformers' `resize_token_embeddings`, after Hewitt, "Initializing new word embeddings for
pretrained language models", 2021; the decoder's bias of new tokens is 0, there and here.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import Params
from jaxllm.trees import leaf_at, map_params

SPREAD = 1e-9  # of the old rows' covariance: new rows are not all equal


def resized(params: Params, abstract: Params, key: jax.Array) -> Params:
    """`params` with the shapes of `abstract`, which differ in the vocabulary: the first axis, and
    of an output layer that is not tied the last.
    """

    def leaf(path: str, wanted: Any) -> Any:
        old = leaf_at(params, path)
        if old.shape == wanted.shape:
            return old
        if path.endswith("kernel"):
            return _rows(old.T, wanted.shape[-1], key).T
        return _rows(old, wanted.shape[0], key)

    return map_params(leaf, abstract)


def _rows(rows: Any, count: int, key: jax.Array) -> Any:
    """The first `count` rows; where there are not so many, with new ones."""
    if count <= len(rows):
        return rows[:count]
    new, old = count - len(rows), jnp.asarray(rows, jnp.float32)
    if old.ndim == 1:
        return jnp.concatenate([old, jnp.zeros(new, jnp.float32)])
    mean = old.mean(0, keepdims=True)
    weights = jax.random.normal(key, (new, len(old)), jnp.float32)
    noise = weights @ (old - mean) * (SPREAD / len(old)) ** 0.5
    return jnp.concatenate([old, mean + noise])
