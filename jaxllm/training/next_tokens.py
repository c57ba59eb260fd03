"""Causal language modelling: the loss of next tokens, computed for some of them at a time.

Logits of all tokens in float32 are the largest array of a small language model: 412 MB for 8 rows
of 256 tokens and 50,257 entries, and their gradient as much again. Here a slice of the tokens has
its logits, its loss and its gradients computed at once, so that no array is [tokens, vocabulary].
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models import Apply
from jaxllm.nn.sharding import in_mesh
from jaxllm.training.objectives import Batch, Objective

# Logits of a slice on each device.
_LARGEST = 1 << 25

# f(parameters of the head, x [..., D]) -> logits [..., V]
Scores = Callable[[Any, jax.Array], jax.Array]


class NextTokens(NamedTuple):
    """What the labels of a batch come to.

    Attributes:
        total: float32 [], the weighted sum of the losses; the one that has a gradient.
        losses_BT: float32 [B, T], the cross entropy of each label, neither smoothed nor weighted.
        hits_BT: bool [B, T], whether no token has a higher logit than the label.
    """

    total: jax.Array
    losses_BT: jax.Array
    hits_BT: jax.Array


def causal_lm(
    apply: Apply,
    *,
    vocabulary: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    replies: bool = False,
) -> Objective:
    """Of every token the next one, `labels` [B, T] weighted by `label_weights`; see `next_tokens`.

    Metrics: loss; accuracy; text_loss, neither smoothed nor penalized, weighted by `text_weights`;
    of `replies` also exact_match, see `exact_matches`.
    """

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        labels, weights = batch["labels"], batch["label_weights"]

        def judge(scores: Scores, params: Any, x_BTD: jax.Array) -> NextTokens:
            return next_tokens(
                *(scores, params, x_BTD, labels, weights),
                vocabulary=vocabulary,
                label_smoothing=label_smoothing,
                z_loss=z_loss,
            )

        inputs = {name: batch[name] for name in ("input_ids", "segment_ids")}
        out = apply(params, **inputs, key=key, judge=judge)
        weight, text = jnp.sum(weights), batch["text_weights"]
        metrics = {
            "loss": (out.total, weight),
            "accuracy": (jnp.sum(out.hits_BT * weights), weight),
            "text_loss": (jnp.sum(out.losses_BT * text), jnp.sum(text)),
        }
        if replies:
            metrics["exact_match"] = exact_matches(out.hits_BT, batch["segment_ids"], weights > 0)
        return out.total, (metrics, ())

    return objective


def exact_matches(
    hits_BT: jax.Array, segment_ids_BT: jax.Array, asked_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(texts of which every label that is asked for is the likeliest token, texts that are asked).

    Greedy decoding writes these labels behind what is before them, token by token.
    """
    T = hits_BT.shape[1]

    def count(hits_T: jax.Array, ids_T: jax.Array, asked_T: jax.Array) -> jax.Array:
        none = jnp.zeros(T + 1, jnp.int32)  # by the segment's id, which is at most T
        asked = none.at[ids_T].max(asked_T.astype(jnp.int32))
        missed = none.at[ids_T].max((asked_T & ~hits_T).astype(jnp.int32))
        return jnp.stack([jnp.sum(asked - missed), jnp.sum(asked)])

    right, texts = jnp.sum(jax.vmap(count)(hits_BT, segment_ids_BT, asked_BT), axis=0)
    return right.astype(jnp.float32), texts.astype(jnp.float32)


def next_tokens(
    scores: Scores,
    params: Any,
    x_BTD: jax.Array,
    labels_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    vocabulary: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    slices: int | None = None,
) -> NextTokens:
    """The softmax cross entropy of int32 `labels_BT`, weighted by float32 `weights_BT`.

    The gradient, for `params` and `x_BTD`, is computed beside the loss, a slice of T after the
    other, and kept in the place of what a backward pass would need.

    Args:
        scores: the head, a function of nothing but its arguments.
        vocabulary: V.
        label_smoothing: share of the target that is spread over the vocabulary.
        z_loss: weight of log(Z)², Z the softmax's sum (Chowdhery et al., 2022, section 5).
        slices: of T; None = so many that a device has 2**25 logits at a time, 128 MiB.
    """
    B, T = labels_BT.shape
    if slices is None:
        slices = min(T, -(-B * T * vocabulary // (_LARGEST * _shards())))
    one = partial(_slice, scores, label_smoothing, z_loss)
    if slices <= 1:
        return NextTokens(*_flat(one(params, x_BTD, labels_BT, weights_BT)))
    pad = -T % slices

    def cut(x: jax.Array) -> jax.Array:
        """[slices, B, T / slices, …], the end filled up with zeros, which have no weight."""
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(B, slices, -1, *x.shape[2:]).swapaxes(0, 1)

    total, losses, hits = _sliced(one, params, cut(x_BTD), cut(labels_BT), cut(weights_BT))

    def whole(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(B, -1)[:, :T]

    return NextTokens(total, whole(losses), whole(hits))


def _shards() -> int:
    """Into how many parts devices split the rows of a batch."""
    shape = jax.sharding.get_abstract_mesh().shape
    return shape["data"] * shape["fsdp"] if in_mesh() else 1


def _flat(out: tuple) -> tuple:
    total, (losses, hits) = out
    return total, losses, hits


def _slice(
    scores: Scores,
    label_smoothing: float,
    z_loss: float,
    params: Any,
    x: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(weighted sum, (cross entropy of each label, whether it is the likeliest token))."""
    logits = scores(params, x).astype(jnp.float32)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_z = jnp.log(jnp.sum(jnp.exp(logits - peak[..., None]), axis=-1)) + peak
    # A comparison, not a gather: its gradient is one, too, and no scatter.
    is_label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    own = jnp.sum(jnp.where(is_label == labels[..., None], logits, 0.0), axis=-1)
    losses = log_z - own
    penalized = losses
    if label_smoothing:
        spread = log_z - jnp.mean(logits, axis=-1)
        penalized = (1 - label_smoothing) * losses + label_smoothing * spread
    if z_loss:
        penalized = penalized + z_loss * jnp.square(log_z)
    return jnp.sum(penalized * weights), (losses, own >= peak)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sliced(one: Callable[..., tuple], params: Any, *arrays: jax.Array) -> tuple:
    """(total, losses, hits) of `one` over the leading axis of `arrays`: x, labels, weights."""

    def body(total: jax.Array, part: tuple) -> tuple:
        value, others = one(params, *part)
        return total + value, others

    return _flat(jax.lax.scan(body, jnp.zeros(()), arrays))


def _forward(one: Callable[..., tuple], params: Any, *arrays: jax.Array) -> tuple:
    gradient = jax.value_and_grad(one, argnums=(0, 1), has_aux=True)

    def body(sums: tuple, part: tuple) -> tuple:
        (value, others), (of_params, of_x) = gradient(params, *part)
        return jax.tree.map(jnp.add, sums, (value, of_params)), (*others, of_x)

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    sums: tuple
    of_slices: tuple
    sums, of_slices = jax.lax.scan(body, zeros, arrays)
    return (sums[0], *of_slices[:2]), (sums[1], of_slices[2])


def _backward(one: Callable[..., tuple], gradients: tuple, cotangents: tuple) -> tuple:
    factor = cotangents[0]
    of_params, of_x = jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradients)
    return of_params, of_x, None, None


_sliced.defvjp(_forward, _backward)
