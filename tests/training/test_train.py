"""The step: packing, accumulation, remat, unroll, meshes and frozen parts change nothing they
should not.
"""

import copy
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, trees
from jaxllm.config.reading import OptimizerConfig
from jaxllm.nn import sharding
from jaxllm.training import losses, objectives, optim
from jaxllm.training.step import init_state, make_eval_step, make_train_step

TASK = "sequence-classification"
# SGD: the update is the gradient, so parameters compare as gradients do (Adam turns rounding of a
# zero gradient into a step of the full rate).
SGD = OptimizerConfig(
    name="sgd", learning_rate=0.1, schedule="constant", warmup=0.0, weight_decay=0.0, clip_norm=0.0
)


@pytest.fixture(scope="module")
def config(tiny_bert_config):
    config = copy.deepcopy(tiny_bert_config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.initializer_range = 0.2
    return config


@pytest.fixture
def examples(rng):
    """Eight texts of 3 to 14 ids and their labels."""
    lengths = rng.integers(3, 15, 8)
    return [rng.integers(1, 99, n).astype(np.int32) for n in lengths], rng.integers(0, 2, 8)


def rows_of(texts, labels, plan, width):
    """The batch of a plan: each row a list of example numbers, laid end to end."""
    B, P = len(plan), max(len(row) for row in plan)
    batch = {name: np.zeros((B, width), np.int32) for name in objectives.INPUTS[:3]}
    batch["head_positions"] = np.zeros((B, P), np.int32)
    batch["labels"] = np.zeros((B, P), np.int32)
    batch["label_weights"] = np.zeros((B, P), np.float32)
    for b, row in enumerate(plan):
        start = 0
        for slot, i in enumerate(row):
            end = start + len(texts[i])
            batch["input_ids"][b, start:end] = texts[i]
            batch["segment_ids"][b, start:end] = slot + 1
            batch["head_positions"][b, slot] = start
            batch["labels"][b, slot] = labels[i]
            batch["label_weights"][b, slot] = 1.0
            start = end
    return batch


PADDED = [[i] for i in range(8)]
PACKED = [[0, 3], [1, 4, 2], [5, 6], [7]]


KNOWN = {}  # of stepped: what several tests compare with is compiled once
START = {}  # of initial: so are initialisers


def initial(config, mesh, abstract):
    """Random parameters of seed 0 in their shardings."""
    asked = config.to_json_string()
    if asked not in START:
        START[asked] = jax.device_get(jax.jit(partial(models.init_params, config, TASK, 0))())
    return jax.device_put(START[asked], sharding.state_shardings(mesh, abstract))


def stepped(config, batch, *, mesh=None, optimizer=SGD, options=None, steps=1, **step_options):
    """(parameters, metrics) after `steps` steps on one batch, everything else default."""
    arrays = [(name, x.shape, x.tobytes()) for name, x in batch.items()]
    asked = (config.to_json_string(), arrays, mesh, optimizer, options, steps, step_options)
    if repr(asked) not in KNOWN:
        KNOWN[repr(asked)] = _stepped(config, batch, mesh, optimizer, options, steps, step_options)
    return KNOWN[repr(asked)]


def _stepped(config, batch, mesh, optimizer, options, steps, step_options):
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    graphdef, abstract = models.module_parts(config, TASK, models.Compute(**(options or {})))
    tx = optim.make_optimizer(optimizer, 10)
    params = initial(config, mesh, abstract)
    step_options = {"clip_norm": 0.0, "accumulation": 1, "frozen": [], **step_options}
    state = init_state(params, tx, mesh, seed=0, frozen=step_options["frozen"])
    step = make_train_step(
        objectives.labelled(models.apply_fn(graphdef), losses.cross_entropy),
        tx,
        state,
        mesh,
        **step_options,
    )
    place = sharding.batch_sharding(mesh)
    for _ in range(steps):
        state, metrics = step(state, {k: jax.device_put(v, place) for k, v in batch.items()})
        jax.block_until_ready(metrics)  # many steps under way on 8 devices wait for each other
    assert step._cache_size() == 1, "the step compiled more than once"
    assert int(state.step) == steps
    return trees.flatten(jax.device_get(state.params)), jax.device_get(metrics)


def assert_same(a, b, rtol=1e-5, atol=1e-6):
    assert a[0].keys() == b[0].keys()
    for path in a[0]:
        np.testing.assert_allclose(a[0][path], b[0][path], rtol=rtol, atol=atol, err_msg=path)
    for name in a[1]:
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=1e-5, err_msg=name)


def test_packed_equals_padded(config, examples):
    padded = stepped(config, rows_of(*examples, PADDED, 16))
    packed = stepped(config, rows_of(*examples, PACKED, 48))
    assert padded[1]["loss"][1] == 8
    assert_same(padded, packed)


def test_padding_rows_and_columns_change_nothing(config, examples):
    plain = stepped(config, rows_of(*examples, PADDED, 16))
    wide = rows_of(*examples, PADDED, 32)
    empty = {k: np.concatenate([v, np.zeros_like(v[:2])]) for k, v in wide.items()}
    assert_same(plain, stepped(config, empty))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_changes_nothing(config, examples, parts):
    batch = rows_of(*examples, PADDED, 16)
    batch["label_weights"][0] = 0.0  # micro-batches of unequal weight: a mean of means would differ
    whole = stepped(config, batch, clip_norm=0.5)
    assert_same(whole, stepped(config, batch, clip_norm=0.5, accumulation=parts))


@pytest.mark.parametrize(
    "options", [{"remat": "full"}, {"remat": "dots"}, {"unroll": 2}, {"unroll": 0}]
)
def test_remat_and_unroll_change_nothing(tiny_bert_config, examples, options):
    """With dropout on: the recomputed masks are the same ones."""
    batch = rows_of(*examples, PACKED, 48)
    plain = stepped(tiny_bert_config, batch)
    assert_same(plain, stepped(tiny_bert_config, batch, options=options))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (1, 2, 4), (2, 2, 2), (1, 1, 4)])
def test_sharded_equals_unsharded(tiny_bert_config, examples, shape):
    """With dropout on: masks do not depend on the mesh."""
    batch = rows_of(*examples, PADDED, 16)
    one = stepped(tiny_bert_config, batch, clip_norm=0.5, steps=2)
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = sharding.make_mesh(*shape, devices=devices)
    assert_same(one, stepped(tiny_bert_config, batch, mesh=mesh, clip_norm=0.5, steps=2))


def test_random_parameters_do_not_depend_on_the_mesh(config):
    mesh = sharding.make_mesh(2, 2, 2)
    _, abstract = models.module_parts(config, TASK)
    init = partial(models.init_params, config, TASK, 0)
    born = jax.jit(init, out_shardings=sharding.state_shardings(mesh, abstract))()
    jax.tree.map(np.testing.assert_array_equal, born, initial(config, mesh, abstract))


def test_sharded_accumulation(tiny_bert_config, examples):
    batch = rows_of(*examples, PADDED, 16)
    mesh = sharding.make_mesh(2, 2, 1, devices=jax.devices()[:4])
    dropless = copy.deepcopy(tiny_bert_config)
    dropless.hidden_dropout_prob = dropless.attention_probs_dropout_prob = 0.0
    whole = stepped(dropless, batch)
    assert_same(whole, stepped(dropless, batch, mesh=mesh, accumulation=2))


def test_dropout_is_on_and_differs_by_step(tiny_bert_config, config, examples):
    batch = rows_of(*examples, PADDED, 16)
    frozen_rate = replace(SGD, learning_rate=1e-12)
    first = stepped(tiny_bert_config, batch, optimizer=frozen_rate)[1]["loss"]
    second = stepped(tiny_bert_config, batch, optimizer=frozen_rate, steps=2)[1]["loss"]
    without = stepped(config, batch, optimizer=frozen_rate)[1]["loss"]
    assert abs(first[0] - second[0]) > 1e-3
    assert abs(first[0] - without[0]) > 1e-3


@pytest.mark.parametrize("frozen", [["embeddings/*", "blocks/*"], ["classifier/bias"]])
def test_frozen_parts_stay(config, examples, frozen):
    batch = rows_of(*examples, PADDED, 16)
    start = stepped(config, batch, optimizer=replace(SGD, learning_rate=0.0))[0]
    after = stepped(config, batch, frozen=frozen)[0]
    for path, x in after.items():
        moved = np.abs(x - start[path]).max() > 0
        assert moved == optim.trainable(path, frozen), path


def test_frozen_parts_have_no_optimizer_state(config):
    tx = optim.make_optimizer(OptimizerConfig(), 10)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = initial(config, mesh, models.module_parts(config, TASK)[1])
    state = init_state(params, tx, mesh, seed=0, frozen=["embeddings/*", "blocks/*"])
    sizes = [x.size for x in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) < 2 * (32 * 32 + 32 + 32 * 2 + 2) + 10


def test_clipping_is_that_of_optax(config, examples):
    batch = rows_of(*examples, PADDED, 16)
    start = stepped(config, batch, optimizer=replace(SGD, learning_rate=0.0))[0]
    free, metrics = stepped(config, batch)
    clipped, _ = stepped(config, batch, clip_norm=0.1)
    norm = float(metrics["grad_norm"][0])
    total = np.sqrt(sum(np.sum(((start[p] - free[p]) / 0.1) ** 2) for p in start))
    np.testing.assert_allclose(norm, total, rtol=1e-4)
    assert norm > 0.1
    for p in start:
        np.testing.assert_allclose(
            start[p] - clipped[p], (start[p] - free[p]) * 0.1 / norm, rtol=1e-3, atol=1e-7
        )


def test_the_loss_that_is_told_holds_the_penalty(config, examples):
    batch = rows_of(*examples, PADDED, 16)
    start = stepped(config, batch, optimizer=replace(SGD, learning_rate=0.0))[0]
    free, without = stepped(config, batch)
    optimizer = replace(SGD, l1=0.25, l2=0.5, penalize="all")
    penalty = optim.make_penalty(optimizer)
    after, metrics = stepped(config, batch, optimizer=optimizer, penalty=penalty)
    expected = sum(np.sum(0.25 * np.abs(x) + 0.25 * x**2) for x in start.values())
    loss, weight = metrics["loss"]
    assert weight == without["loss"][1] == 8
    assert loss / weight == pytest.approx(without["loss"][0] / 8 + expected, rel=1e-6)
    assert metrics["grad_norm"] == without["grad_norm"]
    for path, x in start.items():
        slope = 0.25 * np.sign(x) + 0.5 * x
        np.testing.assert_allclose(after[path], free[path] - 0.1 * slope, rtol=1e-5, atol=1e-6)


def test_one_batch_can_be_overfitted(tiny_bert_config, examples):
    batch = rows_of(*examples, PACKED, 48)
    adam = OptimizerConfig(learning_rate=5e-3, schedule="constant", warmup=0.0)
    _, metrics = stepped(tiny_bert_config, batch, optimizer=adam, steps=60, clip_norm=1.0)
    assert metrics["loss"][0] / metrics["loss"][1] < 0.05
    assert metrics["accuracy"][0] == 8


def test_bfloat16_is_near_float32(config, examples):
    batch = rows_of(*examples, PACKED, 48)
    full = stepped(config, batch)
    half = stepped(config, batch, options={"dtype": "bfloat16"})
    assert all(x.dtype == np.float32 for x in half[0].values())
    difference = abs(half[1]["loss"][0] / full[1]["loss"][0] - 1)
    assert 0 < difference < 0.02


def test_state_is_donated(config, examples):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    graphdef, abstract = models.module_parts(config, TASK)
    tx = optim.make_optimizer(SGD, 10)
    params = initial(config, mesh, abstract)
    state = init_state(params, tx, mesh, seed=0, frozen=[])
    step = make_train_step(
        objectives.labelled(models.apply_fn(graphdef), losses.cross_entropy),
        tx,
        state,
        mesh,
        clip_norm=0.0,
        accumulation=1,
        frozen=[],
    )
    step(state, {k: jnp.asarray(v) for k, v in rows_of(*examples, PADDED, 16).items()})
    assert jax.tree.leaves(state.params)[0].is_deleted()


def test_eval_step_gives_the_logits_and_the_sums(config, examples):
    mesh = sharding.make_mesh(2, 2, 1, devices=jax.devices()[:4])
    graphdef, abstract = models.module_parts(config, TASK)
    params = initial(config, mesh, abstract)
    apply = models.apply_fn(graphdef)
    batch = rows_of(*examples, PADDED, 16)
    objective = objectives.labelled(apply, losses.cross_entropy)
    metrics, logits = make_eval_step(objective, mesh)(params, batch)
    inputs = {name: jnp.asarray(batch[name]) for name in objectives.INPUTS}
    np.testing.assert_allclose(logits, apply(params, **inputs).logits, rtol=1e-5, atol=1e-6)
    right = (np.argmax(logits, -1) == batch["labels"]).sum()
    assert (float(metrics["accuracy"][0]), float(metrics["accuracy"][1])) == (right, 8)
