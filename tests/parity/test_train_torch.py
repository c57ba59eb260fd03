"""Losses and optimizers beside torch's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxllm import losses, optim
from jaxllm.config import OptimizerConfig

WEIGHTS = np.array([1, 1, 0, 1, 1], np.float32)  # the third slot is empty
KEPT = WEIGHTS > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 1.0)])
def test_cross_entropy(smoothing, class_weights, rng):
    logits = rng.normal(size=(5, 3)).astype(np.float32) * 3
    labels = np.array([0, 1, 2, 2, 1], np.int32)
    total, weight = losses.cross_entropy(
        jnp.asarray(logits),
        jnp.asarray(labels),
        jnp.asarray(WEIGHTS),
        label_smoothing=smoothing,
        class_weights=class_weights,
    )
    loss = torch.nn.CrossEntropyLoss(
        weight=None if class_weights is None else torch.tensor(class_weights),
        label_smoothing=smoothing,
    )
    expected = loss(torch.tensor(logits[KEPT]), torch.tensor(labels[KEPT]).long())
    np.testing.assert_allclose(total / weight, expected.item(), rtol=1e-6)


def test_binary_cross_entropy(rng):
    logits = rng.normal(size=(5, 3)).astype(np.float32) * 20
    labels = rng.integers(0, 2, (5, 3)).astype(np.float32)
    total, weight = losses.binary_cross_entropy(*map(jnp.asarray, (logits, labels, WEIGHTS)))
    expected = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits[KEPT]), torch.tensor(labels[KEPT]))
    np.testing.assert_allclose(total / weight, expected.item(), rtol=1e-6)


def test_mean_squared_error(rng):
    logits, labels = (
        rng.normal(size=(5, 1)).astype(np.float32),
        rng.normal(size=5).astype(np.float32),
    )
    total, weight = losses.mean_squared_error(*map(jnp.asarray, (logits, labels, WEIGHTS)))
    expected = torch.nn.MSELoss()(torch.tensor(logits[KEPT, 0]), torch.tensor(labels[KEPT]))
    np.testing.assert_allclose(total / weight, expected.item(), rtol=1e-6)


BASE = OptimizerConfig(
    learning_rate=0.01, schedule="constant", warmup=0.0, weight_decay=0.0, clip_norm=0.0
)
# ours -> (its config, torch's). Adagrad: optax puts eps under the root, torch after it:
# a small eps.
OPTIMIZERS = {
    "adamw": (
        replace(BASE, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
    "adam": (
        replace(BASE, name="adam", l2=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ),
    "sgd": (
        replace(BASE, name="sgd", l2=0.1),
        lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.1),
    ),
    "momentum": (
        replace(BASE, name="momentum", momentum=0.9),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    ),
    "rmsprop": (
        replace(BASE, name="rmsprop", beta2=0.99, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.99, momentum=0.9, eps=1e-8),
    ),
    "adagrad": (
        replace(BASE, name="adagrad", eps=1e-16),
        lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1, eps=1e-8),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps(name, rng):
    config, make = OPTIMIZERS[name]
    start = rng.normal(size=(4, 3)).astype(np.float32)
    grads = rng.normal(size=(5, 4, 3)).astype(np.float32)
    tx = optim.make_optimizer(config, 5)
    params = {"x/kernel": jnp.asarray(start)}
    state = tx.init(params)
    p = torch.tensor(start, requires_grad=True)
    reference = make([p])
    for g in grads:
        updates, state = jax.jit(tx.update)({"x/kernel": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        p.grad = torch.tensor(g)
        reference.step()
    np.testing.assert_allclose(params["x/kernel"], p.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(params["x/kernel"] - start).max() > 0.01
