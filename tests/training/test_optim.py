"""Schedules, decay masks, penalties, layer-wise rates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.config.reading import OptimizerConfig
from jaxllm.errors import InputError
from jaxllm.training import optim

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
        ("linear", 0.2, [0, 0.5, 1, 0.875, 0.5, 0, 0]),
        ("linear", 0.17, [0, 0.5, 1, 0.875, 0.5, 0, 0]),  # 1.7 steps are 2
        ("linear", 2, [0, 0.5, 1, 0.875, 0.5, 0, 0]),
        ("linear", 1.6, [0, 0.5, 1, 0.875, 0.5, 0, 0]),  # to the nearest step
        ("linear", 9, [0, 1 / 9, 2 / 9, 3 / 9, 6 / 9, 0, 0]),
        ("linear", 10, [0, 0.1, 0.2, 0.3, 0.6, 1, 0]),
        ("cosine", 0.2, [0, 0.5, 1, 0.5 * (1 + np.cos(np.pi / 8)), 0.5, 0, 0]),
        ("inverse_sqrt", 0.2, [0, 0.5, 1, *(np.sqrt(2 / n) for n in (3, 6, 10, 12))]),
        ("inverse_sqrt", 1, [0, 1, *(np.sqrt(1 / n) for n in (2, 3, 6, 10, 12))]),
        ("constant", 0.2, [0, 0.5, 1, 1, 1, 1, 1]),
        ("constant", 0.0, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_schedules(schedule, warmup, expected):
    rate = optim.learning_rate_schedule(
        replace(PLAIN, learning_rate=3.0, schedule=schedule, warmup=warmup), 10
    )
    got = [float(rate(step)) for step in (0, 1, 2, 3, 6, 10, 12)]
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
        spared = path.endswith(("/bias", "/scale"))
        expected = 0.0 if spared else -0.1 * np.asarray(PARAMS[path])
        np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), rtol=1e-6, err_msg=path)
    assert {path for path, x in change.items() if not x.any()} == {
        "blocks/attention/norm/scale",
        "blocks/mlp/up/bias",
        "blocks/mlp/norm/scale",
    }


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_of_all_parameters(name):
    config = replace(PLAIN, name=name, weight_decay=0.1, penalize="all")
    for path, x in updates(config).items():
        np.testing.assert_allclose(x, -0.1 * np.asarray(PARAMS[path]), rtol=1e-6, err_msg=path)


def test_penalties_are_gradients():
    config = replace(PLAIN, l1=0.5, l2=0.25)
    change = updates(config, grad=1.0)
    np.testing.assert_allclose(change["classifier/kernel"], -(1 - 0.5 - 0.5), atol=1e-6)
    np.testing.assert_allclose(change["embeddings/word/embedding"], -(1 + 0.5 + 0.5))
    np.testing.assert_allclose(change["blocks/mlp/up/bias"], -1.0)
    everything = replace(config, penalize="all")
    change = updates(everything, grad=1.0)
    np.testing.assert_allclose(change["classifier/kernel"], -(1 - 0.5 - 0.5), atol=1e-6)
    np.testing.assert_allclose(change["blocks/mlp/up/bias"], -(1 + 0.5 + 0.5))
    np.testing.assert_allclose(change["blocks/mlp/norm/scale"], -(1 + 0.5 + 0.5))
    # All parameters are 2 or -2, so each adds 0.5 * 2 + 0.25 / 2 * 4 to the loss: 24 of them in
    # kernels and in the embedding, 16 elsewhere.
    assert float(optim.make_penalty(config)(PARAMS)) == 24 * 1.5
    assert float(optim.make_penalty(everything)(PARAMS)) == 40 * 1.5
    assert optim.make_penalty(PLAIN) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "adafactor"}, True),
        ({"name": "adam", "weight_decay": 0.1}, True),
        ({"name": "adamw", "weight_decay": 0.1}, False),
        ({"name": "adam", "weight_decay": None}, False),
        ({"l1": 0.1}, True),
        ({"l2": 0.1}, True),
    ],
)
def test_what_moves_rows_that_no_text_reaches(changes, expected):
    assert optim.moves_idle_rows(replace(PLAIN, **changes)) is expected


def test_layer_decay():
    change = updates(replace(PLAIN, layer_decay=0.5), grad=1.0)
    np.testing.assert_allclose(change["classifier/kernel"], -1.0)
    np.testing.assert_allclose(change["blocks/mlp/up/bias"][:, 0], [-0.125, -0.25, -0.5])
    np.testing.assert_allclose(change["blocks/attention/norm/scale"][:, 0], [-0.25, -0.5])
    np.testing.assert_allclose(change["embeddings/word/embedding"], -0.0625)


def by_hand(name, x, grads, *, lr, decay):
    """The steps of an optimizer on one matrix or vector, in float64, as its paper or torch.optim's
    page has them; what torch calls its defaults stands here as numbers.
    """
    x, m, v, row, col = np.array(x, np.float64), 0.0, 0.0, 0.0, 0.0
    rms = lambda a: np.sqrt(np.mean(a**2))  # noqa: E731
    for t, g in enumerate(np.asarray(grads, np.float64), 1):
        if name in ("adamw", "lion", "adafactor"):
            kept = x * (1 - lr * decay)
        else:
            kept, g = x, g + decay * x
        if name in ("adam", "adamw"):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        elif name == "sgd":
            u = g
        elif name == "momentum":
            u = m = 0.9 * m + g
        elif name == "rmsprop":
            v = 0.99 * v + 0.01 * g**2
            u = g / (np.sqrt(v) + 1e-8)
        elif name == "adagrad":
            v = v + g**2
            u = g / (np.sqrt(v) + 1e-10)
        elif name == "lion":  # Chen et al., 2023, algorithm 2
            u, m = np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g
        else:  # Shazeer & Stern, 2018, algorithms 4 and 5, with torch's two bounds
            new = t**-0.8
            if x.ndim == 1:
                v = (1 - new) * v + new * g**2
            else:
                row = (1 - new) * row + new * (g**2).mean(1)
                col = (1 - new) * col + new * (g**2).mean(0)
                v = np.outer(row, col) / max(row.mean(), 2**-23)
            u = g / np.sqrt(np.maximum(v, 2**-46))
            u = u / max(1.0, rms(u)) * max(1e-3, rms(x)) * min(1.0, 1 / (lr * np.sqrt(t)))
        x = kept - lr * u
    return x


@pytest.mark.parametrize("decay", [None, 0.2])
@pytest.mark.parametrize(
    ("name", "lr"),
    [
        *[(name, 0.05) for name in ("adamw", "adam", "sgd", "momentum", "rmsprop", "adagrad")],
        *[("lion", 0.05), ("adafactor", 0.05), ("adafactor", 0.9)],
    ],
)
def test_steps_are_those_of_the_paper(name, lr, decay, rng):
    """Each layer of a stack is a parameter of its own, its head axes are one."""
    start = {
        "blocks/attention/output/kernel": rng.normal(size=(2, 2, 2, 3)),
        "blocks/mlp/up/bias": rng.normal(size=(2, 3)),
        "classifier/kernel": rng.normal(size=(3, 2)),
    }
    sizes = (1.0, 1e-3, 30.0, 0.1)
    grads = {path: [s * rng.normal(size=x.shape) for s in sizes] for path, x in start.items()}
    config = OptimizerConfig(name=name, learning_rate=lr, weight_decay=decay, schedule="constant")
    params = {path: jnp.asarray(x, jnp.float32) for path, x in start.items()}
    tx = optim.make_optimizer(replace(config, warmup=0.0), 4)
    state = tx.init(params)
    for step in range(4):
        step_grads = {path: jnp.asarray(g[step], jnp.float32) for path, g in grads.items()}
        changes, state = tx.update(step_grads, state, params)
        params = optax.apply_updates(params, changes)
    if decay is None:
        decay = 0.01 if name == "adamw" else 0.0
    for path, x in start.items():
        stacked = path.startswith("blocks")
        shape = {"output": (4, 3), "up": (3,), "classifier": (3, 2)}[path.split("/")[-2]]
        expected = [
            by_hand(
                *(name, one.reshape(shape), [g.reshape(shape) for g in gs]),
                lr=lr,
                decay=decay if path.endswith("kernel") else 0.0,
            )
            for one, *gs in (zip(x, *grads[path], strict=True) if stacked else [(x, *grads[path])])
        ]
        got = np.asarray(params[path]).reshape(np.shape(expected))
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6, err_msg=path)


def test_what_null_stands_for_is_in_the_help():
    """Each number beside the optimizers whose own it is."""
    text = " ".join(OptimizerConfig.__doc__.split())
    assert optim.OWN_DEFAULTS.keys() == {"weight_decay", "beta2", "eps", "momentum"}
    for field, own in optim.OWN_DEFAULTS.items():
        assert getattr(OptimizerConfig(), field) is None
        documented = text.partition(f" {field}: ")[2].partition("null = ")[2]
        for number in set(own.values()):
            names = ", ".join(sorted(name for name, x in own.items() if x == number))
            assert documented.find(f"{number:g} ({names})") in range(60), (field, number)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("beta1", 0.5, "adamw"),
        ("beta2", 0.5, "adamw"),
        ("eps", 0.5, "adamw"),
        ("momentum", 0.1, "momentum"),
        ("momentum", 0.1, "rmsprop"),
        ("weight_decay", 0.5, "adamw"),
        ("weight_decay", 0.5, "adam"),
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
    frozen = ["embeddings/*", "blocks/mlp/*"]
    assert [path for path in paths if optim.trainable(path, frozen)] == [
        "blocks/attention/norm/scale",
        "classifier/kernel",
    ]
    optim.check_frozen(paths, ["blocks/*"])
    with pytest.raises(InputError, match="'bert/\\*' matches no parameter"):
        optim.check_frozen(paths, ["bert/*"])
    with pytest.raises(InputError, match="leaves no parameter to train"):
        optim.check_frozen(paths, ["*"])
