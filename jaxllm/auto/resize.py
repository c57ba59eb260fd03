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
    """`params` with the shapes of `abstract`, which differ in the vocabulary, the first axis."""

    def leaf(path: str, wanted: Any) -> Any:
        rows = leaf_at(params, path)
        new = wanted.shape[0] - rows.shape[0] if wanted.shape else 0
        if new <= 0:
            return rows if new == 0 else rows[: wanted.shape[0]]
        old = jnp.asarray(rows, jnp.float32)
        if old.ndim == 1:
            return jnp.concatenate([old, jnp.zeros(new, jnp.float32)])
        mean = old.mean(0, keepdims=True)
        weights = jax.random.normal(key, (new, len(old)), jnp.float32)
        noise = weights @ (old - mean) * (SPREAD / len(old)) ** 0.5
        return jnp.concatenate([old, mean + noise])

    return map_params(leaf, abstract)
