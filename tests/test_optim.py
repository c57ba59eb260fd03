"""Schedules, decay masks, penalties, layer-wise rates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import optim
from jaxllm.config import OptimizerConfig
from jaxllm.errors import InputError

PLAIN = OptimizerConfig(
    name="sgd", learning_rate=1.0, schedule="constant", warmup=0.0, weight_decay=0.0
)
PARAMS = {
    "embeddings/word/embedding": jnp.full((4, 2), 2.0),
    "blocks/attention/norm/scale": jnp.full((2, 2), 2.0),  # as in ModernBERT: not in the first
    "blocks/mlp/up/kernel": jnp.full((3, 2, 2), 2.0),
    "blocks/mlp/up/bias": jnp.full((3, 2), 2.0),
    "blocks/mlp/norm/scale": jnp.full((3, 2), 2.0),
    "classifier/kernel": jnp.full((2, 2), -2.0),
}


def updates(config, grad=0.0, steps=1):
    """The last update of `steps` steps with one constant gradient."""
    tx = optim.make_optimizer(config, 10)
    state = tx.init(PARAMS)
    grads = {path: jnp.full_like(x, grad) for path, x in PARAMS.items()}
    for _ in range(steps):
        change, state = tx.update(grads, state, PARAMS)
    return {path: np.asarray(x) for path, x in change.items()}


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.2, [0, 0.5, 1, 0.875, 0.5, 0]),
        ("linear", 2, [0, 0.5, 1, 0.875, 0.5, 0]),
        ("cosine", 0.2, [0, 0.5, 1, 0.5 * (1 + np.cos(np.pi / 8)), 0.5, 0]),
        ("inverse_sqrt", 0.2, [0, 0.5, 1, np.sqrt(2 / 3), np.sqrt(2 / 6), np.sqrt(2 / 10)]),
        ("constant", 0.2, [0, 0.5, 1, 1, 1, 1]),
        ("constant", 0.0, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_schedules(schedule, warmup, expected):
    rate = optim.learning_rate_schedule(
        replace(PLAIN, learning_rate=3.0, schedule=schedule, warmup=warmup), 10
    )
    got = [float(rate(step)) for step in (0, 1, 2, 3, 6, 10)]
    np.testing.assert_allclose(got, 3 * np.asarray(expected), rtol=1e-6, atol=1e-7)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="warmup=11 is longer than the run of 10 steps"):
        optim.learning_rate_schedule(replace(PLAIN, warmup=11), 10)


def test_runs_of_any_length_have_one_program():
    def program(total_steps):
        tx = optim.make_optimizer(replace(PLAIN, name="adamw", schedule="linear"), total_steps)
        return jax.jit(tx.update).lower(PARAMS, tx.init(PARAMS), PARAMS).as_text()

    assert program(10) == program(700)


def test_decay_spares_biases_and_norms():
    change = updates(replace(PLAIN, weight_decay=0.1))
    for path, x in change.items():
        expected = -0.1 * np.asarray(PARAMS[path]) if optim.is_decayed(path) else 0.0
        np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), rtol=1e-6, err_msg=path)
    assert {path for path, x in change.items() if not x.any()} == {
        "blocks/attention/norm/scale",
        "blocks/mlp/up/bias",
        "blocks/mlp/norm/scale",
    }


def test_penalties_are_gradients():
    change = updates(replace(PLAIN, l1=0.5, l2=0.25), grad=1.0)
    np.testing.assert_allclose(change["classifier/kernel"], -(1 - 0.5 - 0.5), atol=1e-6)
    np.testing.assert_allclose(change["embeddings/word/embedding"], -(1 + 0.5 + 0.5))
    np.testing.assert_allclose(change["blocks/mlp/up/bias"], -1.0)


def test_layer_decay():
    change = updates(replace(PLAIN, layer_decay=0.5), grad=1.0)
    np.testing.assert_allclose(change["classifier/kernel"], -1.0)
    np.testing.assert_allclose(change["blocks/mlp/up/bias"][:, 0], [-0.125, -0.25, -0.5])
    np.testing.assert_allclose(change["blocks/attention/norm/scale"][:, 0], [-0.25, -0.5])
    np.testing.assert_allclose(change["embeddings/word/embedding"], -0.0625)


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "sgd", "momentum", "rmsprop", "adagrad", "lion", "adafactor"]
)
def test_every_optimizer_goes_downhill(name):
    tx = optim.make_optimizer(replace(PLAIN, name=name, learning_rate=0.05), 100)
    params, start = PARAMS, sum(float(jnp.sum(x**2)) for x in PARAMS.values())
    state = tx.init(params)
    for _ in range(20):
        change, state = tx.update({p: 2 * x for p, x in params.items()}, state, params)
        params = optax.apply_updates(params, change)
    assert sum(float(jnp.sum(x**2)) for x in params.values()) < 0.9 * start


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("beta1", 0.5, "adamw"),
        ("beta2", 0.5, "adamw"),
        ("eps", 0.5, "adamw"),
        ("momentum", 0.1, "momentum"),
        ("momentum", 0.1, "rmsprop"),
        ("weight_decay", 0.5, "adamw"),
        ("learning_rate", 0.5, "adamw"),
        ("l1", 0.5, "sgd"),
        ("l2", 0.5, "sgd"),
        ("layer_decay", 0.5, "sgd"),
        ("warmup", 4, "sgd"),
        ("schedule", "cosine", "sgd"),
    ],
)
def test_every_field_is_live(field, value, name):
    base = replace(PLAIN, name=name)
    changed = replace(base, **{field: value})

    def path(config):
        """Two gradients of different size, or the moments' rates do not show."""
        tx = optim.make_optimizer(config, 10)
        state = tx.init(PARAMS)
        for size in (1.0, 3.0, -0.5):
            grads = {p: jnp.full_like(x, size) for p, x in PARAMS.items()}
            change, state = tx.update(grads, state, PARAMS)
        return np.asarray(change["blocks/mlp/up/kernel"])

    assert np.abs(path(base) - path(changed)).max() > 1e-4


def test_frozen_patterns_must_match():
    paths = list(PARAMS)
    optim.check_frozen(paths, ["blocks/*"])
    with pytest.raises(InputError, match="'bert/\\*' matches no parameter"):
        optim.check_frozen(paths, ["bert/*"])
    with pytest.raises(InputError, match="leaves no parameter to train"):
        optim.check_frozen(paths, ["*"])
