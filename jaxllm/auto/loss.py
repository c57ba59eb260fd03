"""The loss of an output and its labels: float32 [], the mean that transformers' classes give."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models.arrays import IGNORED
from jaxllm.models.outputs import PretrainingOutput
from jaxllm.training import losses

Arrays = dict[str, jax.Array]
# (output, labels by name, the model's inputs) -> the mean over all labels that count
Loss = Callable[[Any, Arrays, Arrays], jax.Array]


def of_ids(out: Any, labels: Arrays, inputs: Arrays) -> jax.Array:
    """A class for each row, token or choice."""
    (ids,) = _exactly(labels, "labels")
    return _cross_entropy("labels", out.logits, ids)


def of_numbers(out: Any, labels: Arrays, inputs: Arrays) -> jax.Array:
    """Regression: the squared error, also of several numbers a row."""
    (numbers,) = _exactly(labels, "labels")
    shape = out.logits.shape
    if shape[-1] == 1 and numbers.shape == shape[:-1]:
        numbers = numbers[..., None]
    _check_shape("labels", numbers, shape)
    return jnp.mean(jnp.square(out.logits - numbers.astype(jnp.float32)))


def of_flags(out: Any, labels: Arrays, inputs: Arrays) -> jax.Array:
    """Any of the classes, each on its own: 0 or 1, or what is between."""
    (flags,) = _exactly(labels, "labels")
    return _binary("labels", out.logits, flags)


def of_spans(out: Any, labels: Arrays, inputs: Arrays) -> jax.Array:
    """The mean of both ends' losses. As in transformers a position behind the row does not count,
    and one below 0 is 0.
    """
    ends = ("start_positions", "end_positions")
    total = jnp.zeros((), jnp.float32)
    for name, logits, positions in zip(
        ends, (out.start_logits, out.end_logits), _exactly(labels, *ends), strict=True
    ):
        places = jnp.maximum(positions, 0)
        places = jnp.where(places < logits.shape[1], places, IGNORED)
        total += _cross_entropy(name, logits, places) / 2
    return total


def of_next(out: Any, labels: Arrays, inputs: Arrays) -> jax.Array:
    """The labels are the input's own tokens: each is asked for at the token before it. In packed
    rows the first one of a segment is not asked for.
    """
    (ids,) = _exactly(labels, "labels")
    _check_shape("labels", ids, out.logits.shape[:-1])
    following = jnp.full_like(ids, IGNORED).at[:, :-1].set(ids[:, 1:])
    if "segment_ids" in inputs:
        segments = inputs["segment_ids"]
        same = jnp.zeros(segments.shape, bool).at[:, :-1].set(segments[:, 1:] == segments[:, :-1])
        following = jnp.where(same & (segments > 0), following, IGNORED)
    return _cross_entropy("labels", out.logits, following)


def of_pretraining(out: Any, labels: Arrays, inputs: Arrays) -> jax.Array:
    """BERT: the sum of the masked tokens' and the next sentences' losses. ELECTRA's discriminator:
    whether each token that is no padding was replaced.
    """
    if isinstance(out, PretrainingOutput):
        tokens, following = _exactly(labels, "labels", "next_sentence_label")
        return _cross_entropy("labels", out.prediction_logits, tokens) + _cross_entropy(
            "next_sentence_label", out.seq_relationship_logits, following
        )
    (flags,) = _exactly(labels, "labels")
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim > 2:
        raise InputError(
            f"attention_mask: found {mask.ndim} axes, which do not say which tokens are padding, "
            "and padding does not count in the loss; give [rows, tokens], or leave labels out"
        )
    counts = jnp.ones(out.logits.shape, bool) if mask is None else mask != 0
    if "segment_ids" in inputs:
        counts &= inputs["segment_ids"] > 0
    return _binary("labels", out.logits[..., None], flags[..., None], counts)


_OF_TASK = {
    "pretraining": of_pretraining,
    "masked-lm": of_ids,
    "causal-lm": of_next,
    "next-sentence": of_ids,
    "token-classification": of_ids,
    "question-answering": of_spans,
    "multiple-choice": of_ids,
}
_OF_PROBLEM = {
    "regression": of_numbers,
    "single_label_classification": of_ids,
    "multi_label_classification": of_flags,
}


def loss_of(task: str, config: Any, labels: dict[str, Any]) -> Loss:
    """The loss of a task's class; of sequence classification that of config.problem_type, or, where
    the config has none, that which the number of labels and their type tell.
    """
    if task != "sequence-classification":
        if task not in _OF_TASK:
            raise InputError(
                f"{min(labels)}=: a model without a head has no loss; leave it out, or use a class "
                "that has a head"
            )
        return _OF_TASK[task]
    problem = config.problem_type
    if problem is None:
        whole = all(jnp.issubdtype(x.dtype, jnp.integer) for x in labels.values())
        several = "single_label_classification" if whole else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else several
    return _OF_PROBLEM[problem]


def classes_of(task: str, config: Any) -> dict[str, int]:
    """How many classes the labels of a task are of, where the config says it."""
    words = {"labels": config.vocab_size, "next_sentence_label": 2}
    labels = {"labels": config.num_labels}
    return {
        "pretraining": words,
        "masked-lm": words,
        "causal-lm": words,
        "next-sentence": {"labels": 2},
        "sequence-classification": labels,
        "token-classification": labels,
    }.get(task, {})


def _exactly(labels: Arrays, *names: str) -> list[jax.Array]:
    found, expected = sorted(labels), " and ".join(f"{name}=" for name in names)
    if found != sorted(names):
        given = " and ".join(f"{name}=" for name in found)
        raise InputError(f"found {given}, expected {expected} for the loss of this class")
    return [labels[name] for name in names]


def _check_shape(name: str, labels: jax.Array, shape: tuple[int, ...]) -> None:
    if labels.shape != shape:
        raise InputError(f"{name}: found the shape {list(labels.shape)}, expected {list(shape)}")


def _cross_entropy(name: str, logits: jax.Array, ids: jax.Array) -> jax.Array:
    """NaN where no label counts, as in PyTorch, and where one is no class: there PyTorch stops."""
    _check_shape(name, ids, logits.shape[:-1])
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"{name}: found numbers of type {ids.dtype}, expected classes, whole")
    counts = ids != IGNORED
    known = (ids >= 0) & (ids < logits.shape[-1])
    total, weight = losses.cross_entropy(logits, ids, counts.astype(jnp.float32))
    return jnp.where(jnp.all(known | ~counts), total / weight, jnp.nan)


def _binary(
    name: str, logits: jax.Array, flags: jax.Array, counts: jax.Array | None = None
) -> jax.Array:
    _check_shape(name, flags, logits.shape)
    weights = (
        jnp.ones(logits.shape[:-1], jnp.float32) if counts is None else counts.astype(jnp.float32)
    )
    total, weight = losses.binary_cross_entropy(logits, flags.astype(jnp.float32), weights)
    return total / weight
