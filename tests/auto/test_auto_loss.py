"""Labels that the public classes take, and the loss of their outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import close, tiny_model

from jaxllm.errors import InputError

B, T = 2, 10


@pytest.fixture
def ids(rng):
    return rng.integers(2, 99, (B, T))


SEQUENCE, TOKENS, SPANS = "sequence-classification", "token-classification", "question-answering"
TWO, FEW = [0, 1], np.zeros((B, T), int)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (SEQUENCE, {"labels": [0, 3]}, "labels: found 3, expected 0 to 2; -100 is a label that"),
        (SEQUENCE, {"labels": [-1, 0]}, "labels: found -1, expected 0 to 2"),
        (SEQUENCE, {"labels": [0]}, r"labels: found the shape \[1\], expected \[2\]"),
        (SEQUENCE, {"labels": [0.0, 1]}, r"the shape \[2\], expected \[2, 3\]"),
        (SEQUENCE, {"labels": ["a", "b"]}, "labels: found numbers of type <U1, expected real"),
        (SEQUENCE, {"start_positions": TWO}, "found start_positions=, expected labels= for"),
        (TOKENS, {"labels": TWO}, r"the shape \[2\], expected \[2, 10\]"),
        (TOKENS, {"labels": FEW / 1.0}, "type float32, expected classes, whole"),
        (SPANS, {"labels": TWO}, "found labels=, expected start_positions= and end_positions="),
        (SPANS, {"start_positions": TWO}, "found start_positions=, expected start_positions= a"),
        (
            SPANS,
            {"start_positions": [TWO], "end_positions": TWO},
            r"shape \[1, 2\], expected",
        ),
        (
            "pretraining",
            {"labels": FEW},
            "expected labels= and next_sentence_label=",
        ),
        ("pretraining", {"next_sentence_label": [0, 2]}, "label: found 2, expected 0 to 1"),
        ("base", {"labels": TWO}, "labels=: a model without a head has no loss"),
    ],
)
def test_labels_that_do_not_fit(task, labels, message, ids):
    with pytest.raises(InputError, match=message):
        tiny_model("bert", task)(ids, **labels)


def test_labels_on_a_device_that_are_no_class_give_no_number(ids):
    """They are not looked at, and a one-hot row of zeros would count as a loss of 0."""
    for wrong in (3, -1):
        assert np.isnan(tiny_model()(ids, labels=jnp.asarray([0, wrong])).loss)
    assert np.isfinite(tiny_model()(ids, labels=jnp.asarray([0, -100])).loss)


def test_the_loss_of_replaced_tokens_needs_to_know_the_padding(ids):
    model = tiny_model("electra", "pretraining")
    labels = (ids > 50).astype(int)
    packed = {"segment_ids": np.repeat([[1, 0]], T // 2, 1)}
    half = model(ids[:1, : T // 2], labels=labels[:1, : T // 2]).loss
    close(model(ids[:1], labels=labels[:1], **packed).loss, half)
    with pytest.raises(InputError, match=r"attention_mask: found 3 axes, .*; give \[rows, tokens"):
        model(ids, np.ones((B, T, T), bool), labels=labels)


def test_the_gradient_of_the_loss_is_that_of_its_formula(ids):
    model, labels = tiny_model(), jnp.asarray([2, 0])

    def by_hand(params):
        log_probs = jax.nn.log_softmax(model.apply(params, input_ids=ids).logits)
        return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()

    by_loss = jax.grad(lambda params: model.apply(params, input_ids=ids, labels=labels).loss)
    close(jax.jit(by_loss)(model.params), jax.jit(jax.grad(by_hand))(model.params))


def test_next_tokens_are_asked_for_within_their_segment():
    """Two texts in one row are what they are alone; the first token of a text is not asked for."""
    model = tiny_model("gpt2", "causal-lm")
    rng = np.random.default_rng(1)
    first, second = rng.integers(2, 99, (1, 4)), rng.integers(2, 99, (1, 5))
    row = np.concatenate([first, second, [[0]]], axis=1)
    segments = np.array([[1] * 4 + [2] * 5 + [0]])
    packed = model(row, segment_ids=segments, labels=row).loss
    alone = [float(model(ids, labels=ids).loss) for ids in (first, second)]
    close(packed, (3 * alone[0] + 4 * alone[1]) / 7)
    ignored = np.where(np.arange(5)[None] < 2, -100, second)
    logits = np.asarray(model(second).logits[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    close(
        model(second, labels=ignored).loss,
        -np.mean([log_p[i - 1, second[0, i]] for i in (2, 3, 4)]),
    )
    with pytest.raises(InputError, match=r"labels: found the shape \[1, 4\], expected \[1, 5\]"):
        model(second, labels=first)
    with pytest.raises(InputError, match="labels: found 99, expected 0 to 98"):
        model(second, labels=np.full((1, 5), 99))
