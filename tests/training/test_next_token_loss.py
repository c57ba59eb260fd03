"""The loss of next tokens in slices: equal to the plain one, of any head, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.nn.sharding import batch_sharding, make_mesh
from jaxllm.training.losses import cross_entropy
from jaxllm.training.next_tokens import causal_lm, next_tokens

B, T, D, V = 4, 7, 6, 11


def scores(params, x):
    """A tied head with a bias, as masked language models have it, too."""
    return jnp.einsum("...D,VD->...V", x, params["table"].astype(x.dtype)) + params["bias"].astype(
        x.dtype
    ).reshape((1,) * (x.ndim - 1) + (V,))


@pytest.fixture
def case(rng):
    params = {
        "table": jnp.asarray(rng.standard_normal((V, D)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(V), jnp.float32),
    }
    x_BTD = jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32)
    labels_BT = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights_BT = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) < 0.7), jnp.float32)
    return params, x_BTD, labels_BT, weights_BT


def sliced(case, slices, **options):
    """(loss, gradients of the head and of x), and what each label comes to."""
    params, x_BTD, labels_BT, weights_BT = case

    def loss(params, x_BTD):
        out = next_tokens(
            *(scores, params, x_BTD, labels_BT, weights_BT),
            vocabulary=V,
            slices=slices,
            **options,
        )
        return 3 * out.total, out  # a cotangent other than 1

    (total, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        params, x_BTD
    )
    return total / 3, jax.tree.map(lambda g: g / 3, grads), out


def plain(case, **options):
    params, x_BTD, labels_BT, weights_BT = case

    def loss(params, x_BTD):
        return cross_entropy(scores(params, x_BTD), labels_BT, weights_BT, **options)[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x_BTD)


@pytest.mark.parametrize("slices", [1, 2, 7])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_slices_give_the_plain_loss_and_gradients(case, slices, label_smoothing):
    total, grads, _ = sliced(case, slices, label_smoothing=label_smoothing)
    expected, expected_grads = plain(case, label_smoothing=label_smoothing)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16(case):
    params, x_BTD, *labels = case
    half = params, x_BTD.astype(jnp.bfloat16), *labels
    total, grads, _ = sliced(half, 2)
    expected, expected_grads = plain(half)
    assert total.dtype == jnp.float32
    assert [g.dtype for g in jax.tree.leaves(grads)] == [jnp.float32, jnp.float32, jnp.bfloat16]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    exact = plain(case)[1]
    leaves = map(jax.tree.leaves, (grads, expected_grads, exact))
    for ours, theirs, best in zip(*leaves, strict=True):
        size = float(jnp.abs(best).max())
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=2**-7 * size
        )
        np.testing.assert_allclose(ours.astype(jnp.float32), best, atol=2**-5 * size)


@pytest.mark.parametrize("slices", [1, 3])
def test_smoothing_and_z_loss_are_those_of_the_formula(case, slices):
    params, x_BTD, labels_BT, weights_BT = (
        jax.tree.map(lambda a: np.asarray(a, np.float64), part) for part in case
    )
    logits = x_BTD @ params["table"].T + params["bias"]
    log_z = np.log(np.exp(logits).sum(-1))
    own = np.take_along_axis(logits, labels_BT.astype(int)[..., None], -1)[..., 0]
    nll = log_z - own
    smooth = 0.9 * nll + 0.1 * (log_z - logits.mean(-1))
    expected = ((smooth + 0.01 * log_z**2) * weights_BT).sum()
    total, grads, out = sliced(case, slices, label_smoothing=0.1, z_loss=0.01)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(out.losses_BT, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.hits_BT, logits.argmax(-1) == labels_BT)
    p = np.exp(logits - log_z[..., None])
    target = 0.9 * (np.arange(V) == labels_BT[..., None]) + 0.1 / V
    of_logits = (p * (1 + 0.02 * log_z[..., None]) - target) * weights_BT[..., None]
    np.testing.assert_allclose(grads[1], of_logits @ params["table"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads[0]["bias"], of_logits.sum((0, 1)), rtol=1e-4, atol=1e-5)


def test_labels_without_weight_do_not_count_whatever_they_are(case):
    """optax's cross entropy of -100 is NaN below 100 classes, and above them that of V - 100."""
    params, x_BTD, labels_BT, weights_BT = case
    wrong = jnp.where(weights_BT > 0, labels_BT, -100)
    for slices in (1, 2):
        total, grads, _ = sliced((params, x_BTD, wrong, weights_BT), slices)
        same, same_grads, _ = sliced(case, slices)
        np.testing.assert_array_equal(total, same)
        jax.tree.map(np.testing.assert_array_equal, grads, same_grads)


def test_no_array_has_all_logits():
    rows, tokens, entries = 2, 64, 64 * 1024
    params = jnp.zeros((entries, 4))
    x, labels = jnp.zeros((rows, tokens, 4)), jnp.zeros((rows, tokens), int)

    def loss(table, x, slices):
        return next_tokens(
            *(lambda table, x: jnp.einsum("...D,VD->...V", x, table), table, x, labels),
            jnp.ones((rows, tokens)),
            vocabulary=entries,
            slices=slices,
        ).total

    def memory(slices):
        step = jax.jit(jax.value_and_grad(lambda *a: loss(*a, slices), argnums=(0, 1)))
        return step.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    logits = rows * tokens * entries * 4
    assert memory(1) >= logits
    assert memory(16) < logits / 2


def test_slices_follow_the_vocabulary_and_the_devices(case, monkeypatch):
    from jaxllm.training import next_tokens as module

    params, x_BTD, labels_BT, weights_BT = case
    seen = []

    def watched(params, x):
        seen.append(x.shape)
        return scores(params, x)

    monkeypatch.setattr(module, "_LARGEST", B * V * 3)
    next_tokens(watched, params, x_BTD, labels_BT, weights_BT, vocabulary=V)
    assert seen[0] == (B, 3, D)
    seen.clear()
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        next_tokens(watched, params, x_BTD, labels_BT, weights_BT, vocabulary=V)
    assert seen[0] == (B, 4, D)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_sharded_equals_unsharded(case, sizes):
    params, x_BTD, labels_BT, weights_BT = case
    double = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x_BTD, labels_BT, weights_BT))
    whole, whole_grads, out = sliced((params, *double), 3)
    mesh = make_mesh(*sizes)
    placed = jax.device_put(double, batch_sharding(mesh))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        total, grads, parts = sliced((params, *placed), 3)
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(whole_grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts.losses_BT, out.losses_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("second", "right", "texts"),
    [([2, 0, 1], 2, 2), ([2, 0, 0], 1, 2), ([0, 0, 1], 2, 2)],
)
def test_replies_that_greedy_decoding_would_write(second, right, texts):
    """Behind i the model writes i + 1 of three tokens; two texts in a row, asked for in part."""
    table = 5 * np.eye(3, dtype=np.float32)[[1, 2, 0]]

    def apply(params, *, input_ids, segment_ids, key, judge):
        return judge(lambda table, x: x @ table, params, jax.nn.one_hot(input_ids, 3))

    # The first label of the second text is not asked for; padding is in no text.
    ids = np.array([[0, 1, 1, 1, 2, 0, 0], [0] * 7])
    labels = np.array([[1, 2, 2, *second, 0], [0] * 7])
    asked = np.array([[0, 1, 1, 0, 1, 1, 0], [0] * 7], np.float32)
    batch = {
        "input_ids": ids,
        "segment_ids": np.array([[1, 1, 1, 2, 2, 2, 0], [0] * 7]),
        "labels": labels,
        "label_weights": asked,
        "text_weights": asked,
    }
    _, (metrics, _) = causal_lm(apply, vocabulary=3, replies=True)(table, batch, None)
    assert [float(x) for x in metrics["exact_match"]] == [right, texts]
    assert "exact_match" not in causal_lm(apply, vocabulary=3)(table, batch, None)[1][0]
