"""The losses by hand: sums and weights of a few numbers, each worked out on paper."""

from math import exp, log

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.training.losses import binary_cross_entropy, cross_entropy, info_nce, mean_squared_error

# Softmax gives 1/8, 2/8 and 5/8, and 6/8, 1/8 and 1/8.
LOGITS = jnp.log(jnp.array([[1.0, 2.0, 5.0], [6.0, 1.0, 1.0]]))
LABELS = jnp.array([2, 1])


@pytest.mark.parametrize(
    ("options", "weights", "loss", "weight"),
    [
        ({}, [1.0, 1.0], log(8 / 5) + log(8), 2.0),
        ({}, [1.0, 0.0], log(8 / 5), 1.0),
        ({}, [0.5, 2.0], 0.5 * log(8 / 5) + 2 * log(8), 2.5),
        (
            {"label_smoothing": 0.3},  # 0.8 for the label, 0.1 for each other one
            [1.0, 2.0],
            0.8 * log(8 / 5) + 0.1 * (log(8) + log(4)) + 2 * (0.9 * log(8) + 0.1 * log(8 / 6)),
            3.0,
        ),
        ({"class_weights": (1.0, 3.0, 0.5)}, [1.0, 2.0], 0.5 * log(8 / 5) + 6 * log(8), 6.5),
        (
            {"class_weights": (1.0, 3.0, 0.5), "label_smoothing": 0.3},
            [1.0, 0.0],
            0.5 * 0.8 * log(8 / 5) + 0.1 * log(8) + 0.3 * log(4),
            0.5,
        ),
    ],
)
def test_cross_entropy(options, weights, loss, weight):
    got = cross_entropy(LOGITS, LABELS, jnp.array(weights), **options)
    np.testing.assert_allclose(got, (loss, weight), rtol=1e-6, atol=1e-6)
    slots = (LOGITS[None], LABELS[None], jnp.array([weights]))  # [B, P]
    np.testing.assert_allclose(
        cross_entropy(*slots, **options), (loss, weight), rtol=1e-6, atol=1e-6
    )


def test_logits_of_any_size_and_dtype():
    """Softmax in float32, without overflow."""
    logits = jnp.array([[1000.0, 0.0], [0.0, -1000.0]], jnp.bfloat16)
    loss, _ = cross_entropy(logits, jnp.array([1, 0]), jnp.ones(2))
    assert loss.dtype == jnp.float32
    assert float(loss) == 1000.0
    half = jnp.array([[0.0, 1 / 128]], jnp.bfloat16)  # of which bfloat16 keeps 8 bits of log 2
    loss, _ = cross_entropy(half, jnp.array([0]), jnp.ones(1))
    assert float(loss) == pytest.approx(log(1 + exp(1 / 128)), rel=1e-6)


def test_binary_cross_entropy():
    """Sigmoid gives 1/2 and 3/4; the loss of an example is the mean over its classes."""
    logits = jnp.array([[0.0, log(3)], [log(3), -log(3)]])
    labels = jnp.array([[1.0, 0.0], [1.0, 0.5]])
    weights = jnp.array([1.0, 0.5])
    first = (log(2) + log(4)) / 2
    second = (log(4 / 3) + 0.5 * log(4) + 0.5 * log(4 / 3)) / 2
    got = binary_cross_entropy(logits, labels, weights)
    np.testing.assert_allclose(got, (first + second / 2, 1.5), rtol=1e-6, atol=1e-6)
    slots = (logits[None], labels[None], weights[None])  # [B, P, C]
    np.testing.assert_allclose(binary_cross_entropy(*slots), got, rtol=1e-6)
    large = jnp.array([[200.0, -200.0]], jnp.bfloat16)
    assert float(binary_cross_entropy(large, jnp.array([[0.0, 0.0]]), jnp.ones(1))[0]) == 100.0
    assert float(binary_cross_entropy(large, jnp.array([[1.0, 1.0]]), jnp.ones(1))[0]) == 100.0


def test_mean_squared_error():
    logits = jnp.array([[[1.5], [2.0]], [[0.25], [9.0]]], jnp.bfloat16)
    labels, weights = jnp.array([[1.0, 4.0], [0.0, 1.0]]), jnp.array([[1.0, 0.5], [2.0, 0.0]])
    got = mean_squared_error(logits, labels, weights)
    np.testing.assert_allclose(got, (0.25 + 2.0 + 0.125, 3.5))


def test_info_nce():
    """Two anchors, three candidates of which the first two are theirs; temperature 1/2."""
    anchors = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    candidates = jnp.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    everything = jnp.ones((2, 3), bool)
    first = log(exp(2) + exp(1.2) + exp(-2)) - 2
    second = log(exp(0) + exp(1.6) + exp(0)) - 1.6
    got = info_nce(anchors, candidates, everything, jnp.ones(2), 0.5)
    np.testing.assert_allclose(got, (first + second, 2.0, 2.0), rtol=1e-6, atol=1e-6)
    # The positive counts whether allowed or not; a candidate that is not allowed is left out.
    some = jnp.array([[False, False, True], [True, False, False]])
    first, second = log(exp(2) + exp(-2)) - 2, log(exp(0) + exp(1.6)) - 1.6
    got = info_nce(anchors, candidates, some, jnp.array([1.0, 0.25]), 0.5)
    np.testing.assert_allclose(got, (first + second / 4, 1.25, 1.25), rtol=1e-6, atol=1e-6)
    # Nearer to another's candidate: no hit. As near to another's: a hit.
    swapped = info_nce(anchors, candidates[::-1], everything, jnp.ones(2), 0.5)
    assert float(swapped[2]) == 1.0
    level = info_nce(anchors[:1], candidates[:1].repeat(2, 0), jnp.ones((1, 2), bool), 1.0, 1.0)
    assert float(level[2]) == 1.0
