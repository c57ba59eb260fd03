"""What a batch asks of a model: pure functions of parameters, a batch and a key.

An objective knows the model, the loss and the arrays of a batch; the step knows none of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import Apply
from jaxllm.nn.pooling import Pooling, unit
from jaxllm.training.losses import LossFn, cross_entropy, info_nce

Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight); "loss" is among them
# `key=None` is evaluation. Outputs are arrays that begin with the batch's rows.
Objective = Callable[[Any, Batch, jax.Array | None], tuple[jax.Array, tuple[Metrics, Any]]]

# What of a batch a model with one answer for each text takes; the rest is for the loss.
INPUTS = ("input_ids", "segment_ids", "token_type_ids", "head_positions")


def labelled(apply: Apply, loss_fn: LossFn) -> Objective:
    """A label for each text: `labels` and `label_weights` [B, P] against logits [B, P, C]; or for
    each token, [B, T] against [B, T, C].

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


def embedded(apply: Apply, pooling: Pooling) -> Objective:
    """Nothing is asked: the outputs are the vectors [B, S, D] of the texts at `head_positions`."""

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in INPUTS}
        pool, encoder = pooling.of(params)
        x_BTD = apply(encoder, **inputs, key=key).last_hidden_state
        e_BSD = pool(x_BTD, batch["segment_ids"], batch["head_positions"])
        return jnp.zeros(()), ({}, e_BSD)

    return objective


def contrastive(apply: Apply, pooling: Pooling, temperature: float) -> Objective:
    """Each anchor tells its positive from all other positives and negatives of the whole batch.

    Groups of texts as `data.pairs.Pairs.fill` gives them: `label_weights` [B, P], `text_ids`
    [B, P * G]. A candidate that is the same text as the anchor, or as a positive that the anchor's
    text has anywhere in the batch, is no negative.
    Metrics: loss, and the share of anchors whose positive is the nearest.
    """
    embed = embedded(apply, pooling)

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        _, (_, e_BSD) = embed(params, batch, key)
        # All rows in one: under jit these are the arrays of all devices, not of one.
        weights_N = batch["label_weights"].reshape(-1)
        N = weights_N.shape[0]
        ids_GN = batch["text_ids"].reshape(N, -1).T
        G = ids_GN.shape[0]
        e_GND = jnp.moveaxis(unit(e_BSD).reshape(N, G, -1), 1, 0)
        candidate_ids_M = ids_GN[1:].reshape(-1)
        same_NM = ids_GN[0][:, None] == candidate_ids_M[None]
        same_NM |= _positives(ids_GN[0], ids_GN[1], candidate_ids_M)
        real_M = jnp.tile(weights_N > 0, G - 1)
        loss_sum, weight, hits = info_nce(
            e_GND[0],
            e_GND[1:].reshape(len(candidate_ids_M), -1),
            real_M[None] & ~same_NM,
            weights_N,
            temperature,
        )
        metrics = {"loss": (loss_sum, weight), "retrieval_accuracy": (hits, weight)}
        return loss_sum, (metrics, e_BSD)

    return objective


def _positives(anchors_N: jax.Array, positives_N: jax.Array, texts_M: jax.Array) -> jax.Array:
    """bool [N, M]: whether a text is a positive of an anchor, in any pair with that anchor.

    All arguments are numbers of texts. In empty slots they are 0, and text 0 counts as alike to
    itself only, which it is.
    """
    same_NN = anchors_N[:, None] == anchors_N[None]
    is_NM = positives_N[:, None] == texts_M[None]
    return same_NN.astype(jnp.float32) @ is_NM.astype(jnp.float32) > 0


def spans(apply: Apply) -> Objective:
    """A first and a last token for each text: `labels` [B, P, 2], within the text; -1 is unknown.

    The scores of a text's own tokens compete, so a packed row gives what padded rows give; the loss
    is the mean of both cross entropies, as BERT's (Devlin et al., 2018, section 4.2).

    Outputs: (start_logits, end_logits) [B, T].
    """

    def objective(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in INPUTS}
        out = apply(params, **inputs, key=key)
        labels_BP2 = batch["labels"] + batch["head_positions"][..., None]
        weights = batch["label_weights"] * (batch["labels"][..., 0] >= 0)
        texts = 1 + jnp.arange(weights.shape[1])
        own_BPT = batch["segment_ids"][:, None, :] == texts[None, :, None]
        loss_sum = jnp.zeros(())
        for logits_BT, labels_BP in (
            (out.start_logits, labels_BP2[..., 0]),
            (out.end_logits, labels_BP2[..., 1]),
        ):
            # Far below any logit, yet finite: in an empty slot minus infinity would give NaN.
            logits_BPT = jnp.where(own_BPT, logits_BT.astype(jnp.float32)[:, None, :], -1e30)
            loss_sum += cross_entropy(logits_BPT, labels_BP, weights)[0] / 2
        metrics = {"loss": (loss_sum, jnp.sum(weights))}
        return loss_sum, (metrics, (out.start_logits, out.end_logits))

    return objective
