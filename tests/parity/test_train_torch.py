"""Losses and optimizers beside torch's own."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxllm.config.reading import OptimizerConfig
from jaxllm.training import losses, optim

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


PLAIN = OptimizerConfig(schedule="constant", warmup=0.0)
# Ours, all other settings its defaults -> torch's, likewise. Momentum is SGD with it.
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
}
SHAPES = {
    "embeddings/word/embedding": (5, 4),
    "blocks/attention/query/kernel": (2, 4, 2, 3),
    "blocks/attention/query/bias": (2, 2, 3),
    "blocks/attention/output/kernel": (2, 2, 3, 4),
    "blocks/mlp/norm/scale": (2, 4),
    "classifier/kernel": (4, 3),
    "classifier/bias": (3,),
}


KERNELS = ("/kernel", "/embedding")


def of_torch(path, x):
    """The parameters that PyTorch has for one of ours: one a layer, heads in one axis."""
    heads = {"query/kernel": (4, 6), "query/bias": (6,), "output/kernel": (6, 4)}
    shape = next((s for end, s in heads.items() if path.endswith(end)), x.shape[1:])
    return [layer.reshape(shape) for layer in x] if path.startswith("blocks/") else [x]


def compare(config, make, rng, *, sparing=True):
    """Five steps of both; a gradient of each size, and none at all for one row of the table.

    sparing: PyTorch's decay spares biases and norms, as is usual.
    """
    start = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    tx = optim.make_optimizer(config, 5)
    params = jax.tree.map(jnp.asarray, start)
    state, update = tx.init(params), jax.jit(tx.update)
    theirs = {
        path: [torch.tensor(one, requires_grad=True) for one in of_torch(path, x)]
        for path, x in start.items()
    }
    decay = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    spared = {"weight_decay": 0.0}
    weights = [p for path, ps in theirs.items() if path.endswith(KERNELS) for p in ps]
    others = [p for path, ps in theirs.items() if not path.endswith(KERNELS) for p in ps]
    groups = [{"params": weights}, {"params": others} | (spared if sparing else {})]
    reference = make(groups, lr=config.learning_rate, **decay)
    for size in (1.0, 1e-3, 30.0, 1e-6, 0.1):
        grads = {
            path: size * rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()
        }
        grads["embeddings/word/embedding"][3] = 0.0
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
        for path, g in grads.items():
            for p, one in zip(theirs[path], of_torch(path, g), strict=True):
                p.grad = torch.tensor(one)
        reference.step()
    for path, ps in theirs.items():
        for ours, p in zip(of_torch(path, np.asarray(params[path])), ps, strict=True):
            wanted = p.detach().numpy()
            np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("weight_decay", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps(name, weight_decay, rng):
    config = replace(PLAIN, name=name, learning_rate=0.01, weight_decay=weight_decay)
    compare(config, OPTIMIZERS[name], rng)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_decay_of_all_parameters(name, rng):
    config = replace(
        PLAIN, name=name, learning_rate=0.01, weight_decay=None if name == "adamw" else 0.1
    )
    compare(replace(config, penalize="all"), OPTIMIZERS[name], rng, sparing=False)


def test_settings_that_are_given(rng):
    config = replace(PLAIN, name="rmsprop", learning_rate=0.01, beta2=0.9, momentum=0.5, eps=1e-3)
    compare(config, partial(torch.optim.RMSprop, alpha=0.9, momentum=0.5, eps=1e-3), rng)
    config = replace(PLAIN, name="adam", learning_rate=0.01, beta1=0.8, beta2=0.9, eps=1e-3)
    compare(config, partial(torch.optim.Adam, betas=(0.8, 0.9), eps=1e-3), rng)
    # Adafactor's rate is at most 1 / sqrt(step), its decay is not bounded.
    config = replace(PLAIN, name="adafactor", learning_rate=0.9, weight_decay=0.1)
    compare(config, torch.optim.Adafactor, rng)
