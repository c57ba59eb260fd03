"""Masked losses as (sum, weight): never a mean, so batches of any make-up add up exactly.

Logits are [..., C] and are taken to float32; `weights` has the labels' leading shape, 0 for an
empty slot.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LossFn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross entropy of int32 labels [...], as torch's CrossEntropyLoss.

    With class weights an example's weight is that of its class, and the mean divides by their sum;
    the smoothed part weighs every class by its own weight, as torch does.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    target = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    if class_weights is None:
        per_class, example = jnp.ones((logits.shape[-1],), jnp.float32), weights
    else:
        per_class = jnp.asarray(class_weights, jnp.float32)
        example = weights * jnp.take(per_class, labels)
    per_class = per_class.reshape((1,) * labels.ndim + (-1,))
    soft = (1 - label_smoothing) * target + label_smoothing / logits.shape[-1]
    loss = -jnp.sum(soft * per_class * log_probs, axis=-1)
    return jnp.sum(loss * weights), jnp.sum(example)


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sigmoid cross entropy of float labels [..., C], averaged over the C classes of an example."""
    x = logits.astype(jnp.float32)
    loss = jnp.maximum(x, 0) - x * labels + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.sum(loss.mean(-1) * weights), jnp.sum(weights)


def mean_squared_error(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squared error of float labels [...] against logits [..., 1]."""
    error = logits.astype(jnp.float32)[..., 0] - labels
    return jnp.sum(jnp.square(error) * weights), jnp.sum(weights)


def info_nce(
    anchors_ND: jax.Array,
    candidates_MD: jax.Array,
    allowed_NM: jax.Array,
    weights_N: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sum, weight, how many anchors are nearest to their own candidate): InfoNCE (van den Oord et
    al., 2018) with cosine similarity, as sentence-transformers' MultipleNegativesRankingLoss.

    Vectors are of length 1. Candidate n is the positive of anchor n and always counts; the others
    are its negatives where `allowed_NM`.
    """
    cosine_NM = jnp.einsum(
        "ND,MD->NM", anchors_ND, candidates_MD, precision=jax.lax.Precision.HIGHEST
    )
    N, M = cosine_NM.shape
    own_NM = jnp.arange(N)[:, None] == jnp.arange(M)[None, :]
    logits_NM = jnp.where(allowed_NM | own_NM, cosine_NM / temperature, -jnp.inf)
    own_N = jnp.sum(jnp.where(own_NM, logits_NM, 0.0), axis=1)
    loss_N = jax.nn.logsumexp(logits_NM, axis=1) - own_N
    hits_N = own_N >= jnp.max(logits_NM, axis=1)
    return jnp.sum(loss_N * weights_N), jnp.sum(weights_N), jnp.sum(hits_N * weights_N)
