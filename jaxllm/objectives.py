"""What a batch asks of a model: pure functions of parameters, a batch and a key.

An objective knows the model, the loss and the arrays of a batch; the step knows none of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.losses import LossFn

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight); "loss" is among them
Apply = Callable[..., Any]  # f(params, **inputs) -> a model's output
# `key=None` is evaluation. Outputs are arrays that begin with the batch's rows.
Objective = Callable[[Any, Batch, jax.Array | None], tuple[jax.Array, tuple[Metrics, Any]]]

# What of a batch a model with one answer for each text takes; the rest is for the loss.
INPUTS = ("input_ids", "segment_ids", "token_type_ids", "head_positions")


def labelled(apply: Apply, loss_fn: LossFn) -> Objective:
    """A label for each text: `labels` and `label_weights` [B, P] against logits [B, P, C].

    Outputs: the logits. Metrics: loss, and accuracy where labels are ids.
    """

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in INPUTS}
        logits = apply(params, **inputs, key=key).logits
        labels, weights = batch["labels"], batch["label_weights"]
        loss_sum, weight = loss_fn(logits, labels, weights)
        metrics = {"loss": (loss_sum, weight)}
        if jnp.issubdtype(labels.dtype, jnp.integer):
            hits = (jnp.argmax(logits, -1) == labels) * weights
            metrics["accuracy"] = (jnp.sum(hits), jnp.sum(weights))
        return loss_sum, (metrics, logits)

    return objective
