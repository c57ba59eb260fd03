"""A decoder takes one file, its table and one line: all else follows from what is there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import assert_same
from encoders import outputs_of, random_params
from toy_decoder import TOY

from jaxllm import models
from jaxllm.config.fields import OptimizerConfig
from jaxllm.names import table
from jaxllm.nn import sharding
from jaxllm.pretrained import hf
from jaxllm.training.optim import make_optimizer
from jaxllm.training.pretraining_objectives import masked_lm
from jaxllm.training.step import init_state, make_train_step
from jaxllm.trees import flatten

TASK = "causal-lm"
T = 16


@pytest.fixture(scope="module", autouse=True)
def listed():
    """The line in the table of families, and the name of a class that has no head here yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "llama", TOY)
        patch.setitem(table.CLASS_SUFFIXES, TASK, "ForCausalLM")
        yield


@pytest.fixture(scope="module")
def config():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )


@pytest.fixture(scope="module")
def made(config):
    """(the model's pure function, jitted; random parameters)."""
    graph, _ = models.module_parts(config, TASK)
    return jax.jit(models.apply_fn(graph)), random_params(config, TASK)


@pytest.fixture
def ids(rng):
    return rng.integers(1, 99, (2, T)).astype(np.int32)


def test_a_token_sees_none_behind_it(made, ids):
    """By the gradient: of a row's embeddings, those up to the token have a part in its logits."""
    apply, params = made
    row = np.arange(3, 3 + T, dtype=np.int32)[None]

    def one(word):
        changed = {**params, "embeddings": {"word": {"embedding": word}}}
        x = apply(changed, input_ids=row, head_positions=jnp.asarray([[5]])).logits
        return x[0, 0, 50]  # row 50 of the table is in no token

    slopes = jax.grad(one)(jnp.asarray(params["embeddings"]["word"]["embedding"]))
    reached = np.abs(np.asarray(slopes[3 : 3 + T])).sum(-1) > 0
    assert reached.tolist() == [i <= 5 for i in range(T)]


def test_packed_rows_are_the_texts_alone(made, ids):
    apply, params = made
    segments = np.where(np.arange(T) < 7, 1, np.where(np.arange(T) < 13, 2, 0))[None]
    together = apply(params, input_ids=ids[:1], segment_ids=segments).logits[0]
    for begin, end in ((0, 7), (7, 13)):
        alone = np.zeros((1, T), np.int32)
        alone[0, : end - begin] = ids[0, begin:end]
        mask = (np.arange(T) < end - begin).astype(np.int32)[None]
        expected = apply(params, input_ids=alone, attention_mask=mask).logits[0, : end - begin]
        np.testing.assert_allclose(together[begin:end], expected, rtol=1e-5, atol=1e-5)


def test_some_positions_have_the_logits_of_all(made, ids):
    apply, params = made
    places = np.array([[3, 0, 15], [7, 7, 2]], np.int32)
    whole = np.asarray(apply(params, input_ids=ids).logits)
    some = apply(params, input_ids=ids, head_positions=places).logits
    expected = np.take_along_axis(whole, places[..., None], 1)
    np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5)


def test_blocks_of_a_cpu_are_xlas_attention(config, rng):
    """Rows long enough that there are blocks."""
    longer = dataclasses.replace(config, max_position_embeddings=256)
    ids = rng.integers(1, 99, (1, 256)).astype(np.int32)
    segments = np.repeat([[1, 2]], 128, axis=1).astype(np.int32)
    params = random_params(longer, TASK)

    def gradients(attention):
        graph, _ = models.module_parts(longer, TASK, models.Compute(attention=attention))
        apply = models.apply_fn(graph)

        def loss(params):
            out = apply(params, input_ids=ids, segment_ids=segments)
            return jnp.sum(jnp.tanh(out.logits.astype(jnp.float32))) / 1e3

        return flatten(jax.jit(jax.grad(loss))(params))

    expected = gradients("xla")
    for path, grad in gradients("blocked").items():
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(grad / scale, expected[path] / scale, atol=2e-5, err_msg=path)


def test_sharded_equals_unsharded(config, made, ids):
    apply, params = made
    mesh = sharding.make_mesh(2, 2, 2)
    _, abstract = models.module_parts(config, TASK)
    placed = jax.device_put(params, sharding.state_shardings(mesh, abstract))
    query = placed["blocks"]["attention"]["query"]["kernel"].sharding
    assert tuple(query.spec) == (None, "fsdp", "tensor", None)
    rows = jax.device_put(np.repeat(ids, 2, 0), sharding.batch_sharding(mesh))
    expected = apply(params, input_ids=np.repeat(ids, 2, 0))
    with jax.set_mesh(mesh):
        out = apply(placed, input_ids=rows)
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
def test_its_table_is_used_both_ways(config, made, weights, tmp_path):
    _, params = made
    hf.save_pretrained(tmp_path / "m", params, config, TASK, weights=weights)
    _, abstract = models.module_parts(config, TASK)
    again = hf.load_config(tmp_path / "m")
    loaded, report = hf.load_params(tmp_path / "m", again, abstract, init=pytest.fail)
    assert_same(loaded, params)
    assert again.architectures == ["ToyForCausalLM"]
    assert (report.new, report.unused) == ([], [])


def test_a_step_learns_what_comes_next(config, ids):
    """The step and the objective of masked tokens serve a decoder: each token is asked for."""
    graph, abstract = models.module_parts(config, TASK)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimizer = OptimizerConfig(learning_rate=0.02, schedule="constant", warmup=0)
    tx = make_optimizer(optimizer, 40)
    placed = sharding.state_shardings(mesh, abstract)
    params = jax.device_put(random_params(config, TASK), placed)
    state = init_state(params, tx, mesh, seed=0, frozen=[])
    objective = masked_lm(models.apply_fn(graph))
    step = make_train_step(objective, tx, state, mesh, clip_norm=1.0, accumulation=1, frozen=[])
    places = np.broadcast_to(np.arange(T - 1, dtype=np.int32), (2, T - 1))
    batch = {
        "input_ids": ids,
        "segment_ids": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "head_positions": places,
        "labels": ids[:, 1:],
        "label_weights": np.ones((2, T - 1), np.float32),
        "surplus_masks": np.zeros(2, np.float32),
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        total, weight = metrics["loss"]
        losses.append(float(total / weight))
    assert step._cache_size() == 1
    assert losses[0] > 3
    assert losses[-1] < 0.5


def test_outputs_have_no_head_without_one(config, ids):
    graph, _ = models.module_parts(config, "base")
    out = models.apply_fn(graph)(random_params(config, "base"), input_ids=ids)
    assert list(outputs_of(out)) == ["last_hidden_state"]
