"""What pretraining asks of a model: masked tokens, next sentences, replaced tokens."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import Apply
from jaxllm.training.losses import binary_cross_entropy, cross_entropy
from jaxllm.training.objectives import INPUTS, Batch, Metrics, Objective

# What losses are multiplied with where their means are added (50: Clark et al., 2020).
FACTORS = {"masked_loss": 1.0, "next_sentence_loss": 1.0, "replaced_loss": 50.0}


def masked_lm(apply: Apply) -> Objective:
    """The original tokens, `labels` [B, P] weighted by `label_weights`, at `head_positions`.

    Metrics: loss; masked_accuracy; surplus_masks, the share of masks taken back for want of a slot.
    """

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in INPUTS}
        metrics = _masked(apply(params, **inputs, key=key).logits, batch)
        metrics["loss"] = metrics.pop("masked_loss")
        return metrics["loss"][0], (metrics, ())

    return objective


def masked_lm_and_next_sentence(apply: Apply) -> Objective:
    """BERT's pretraining: the mean loss of masked tokens and that of next-sentence pairs, added.

    The batch has passed `whole_batch_weights`. Metrics: loss, and those of both parts.
    """

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in (*INPUTS, "pooled_positions")}
        out = apply(params, **inputs, key=key)
        metrics = _masked(out.prediction_logits, batch)
        logits, labels = out.seq_relationship_logits, batch["next_sentence_labels"]
        weights = batch["next_sentence_weights"]
        metrics["next_sentence_loss"] = cross_entropy(logits, labels, weights)
        hits = jnp.sum((jnp.argmax(logits, -1) == labels) * weights)
        metrics["next_sentence_accuracy"] = (hits, jnp.sum(weights))
        metrics["loss"] = _added(metrics, batch, "masked_loss", "next_sentence_loss")
        return metrics["loss"][0], (metrics, ())

    return objective


def replaced_token_detection(apply: Apply) -> Objective:
    """ELECTRA's pretraining (Clark et al., 2020): the generator's mean loss on masked tokens, and
    50 times the discriminator's on whether each token is the original one.

    The batch has passed `whole_batch_weights`. Metrics: loss, those of the generator (masked_loss,
    masked_accuracy, surplus_masks) and of the discriminator (replaced_loss, replaced_accuracy).
    """

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in (*INPUTS, "labels", "label_weights")}
        out = apply(params, **inputs, key=key)
        metrics = _masked(out.prediction_logits, batch)
        replaced = out.is_replaced.astype(jnp.float32)
        weights = batch["token_weights"]
        metrics["replaced_loss"] = binary_cross_entropy(
            out.logits[..., None], replaced[..., None], weights
        )
        hits = jnp.sum(((out.logits > 0) == out.is_replaced) * weights)
        metrics["replaced_accuracy"] = (hits, jnp.sum(weights))
        metrics["loss"] = _added(metrics, batch, "masked_loss", "replaced_loss")
        return metrics["loss"][0], (metrics, ())

    return objective


def whole_batch_weights(batch: Batch, **parts: str) -> Batch:
    """`batch` with ``<part>_scale`` float32 [B]: one over the sum of the weights array it names.

    A loss that adds means over different things needs their totals before the batch is split into
    micro-batches; then its parts are sums whose weights come to one over the whole batch.
    """
    rows = len(batch["input_ids"])
    scales = {
        f"{part}_scale": jnp.full((rows,), 1.0 / jnp.maximum(jnp.sum(batch[weights]), 1e-8))
        for part, weights in parts.items()
    }
    return {**batch, **scales}


def total(means: Mapping[str, Any], parts: Iterable[str]) -> Any:
    """The mean losses of `parts`, added."""
    return sum(FACTORS[part] * means[part] for part in parts)


def _added(metrics: Metrics, batch: Batch, *parts: str) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the mean losses of `parts`, added; the weight is one over a whole batch."""
    scales = {part: batch[f"{part}_scale"][0] for part in parts}
    loss_sum = total({part: metrics[part][0] * scales[part] for part in parts}, parts)
    return loss_sum, metrics[parts[0]][1] * scales[parts[0]]


def _masked(logits: jax.Array, batch: Batch) -> Metrics:
    labels, weights = batch["labels"], batch["label_weights"]
    asked, surplus = jnp.sum(weights), jnp.sum(batch["surplus_masks"])
    hits = jnp.sum((jnp.argmax(logits, -1) == labels) * weights)
    return {
        "masked_loss": cross_entropy(logits, labels, weights),
        "masked_accuracy": (hits, asked),
        "surplus_masks": (surplus, asked + surplus),
    }
