"""Every encoder family with every head: packing, unroll, remat and meshes change no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import (
    KIN,
    KINDS,
    PAIRS,
    cotangents,
    outputs_of,
    random_inputs,
    random_params,
    tiny_config,
    weighted,
)
from flax import nnx

from jaxllm import models, trees
from jaxllm.attention.visibility import segment_positions
from jaxllm.errors import InputError
from jaxllm.nn import sharding

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# XLM-RoBERTa is RoBERTa's modules, compared with PyTorch and converted on its own.
DISTINCT = [(family, task) for family, task in PAIRS if family != "xlm-roberta"]
LENGTHS = (5, 9, 1, 3)
ROWS = ((0, 1), (2, 3))  # which examples a packed row holds
WIDTH = 16
SEQUENCE = ("sequence-classification", "next-sentence", "multiple-choice")


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(2, 99, n).astype(np.int32) for n in LENGTHS]


def padded(texts):
    ids = np.zeros((len(texts), max(LENGTHS)), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32)}


def packed(texts):
    """Two rows, padding behind them, and where in them each example begins."""
    batch = {name: np.zeros((len(ROWS), WIDTH), np.int32) for name in ("input_ids", "segment_ids")}
    starts = np.zeros((len(ROWS), 2), np.int32)
    for r, row in enumerate(ROWS):
        end = 0
        for slot, i in enumerate(row):
            start, end = end, end + len(texts[i])
            batch["input_ids"][r, start:end] = texts[i]
            batch["segment_ids"][r, start:end] = slot + 1
            starts[r, slot] = start
    return batch, starts


@pytest.mark.parametrize(("family", "task"), KINDS)
def test_packed_equals_padded(family, task, texts):
    """Each example's outputs, in packed rows and alone in a row."""
    config = tiny_config(family, task)
    params = random_params(config, task)
    apply = jax.jit(models.apply_fn(models.module_parts(config, task)[0]))
    batch, starts = packed(texts)
    if task in SEQUENCE or (task == "base" and family not in ("distilbert", "electra")):
        batch["head_positions"] = starts
    if task == "pretraining" and family == "bert":
        batch["pooled_positions"] = starts
    alone, together = (outputs_of(apply(params, **inputs)) for inputs in (padded(texts), batch))
    of_examples = {"pooler_output", "seq_relationship_logits"}
    for name, expected in alone.items():
        for r, row in enumerate(ROWS):
            for slot, i in enumerate(row):
                if task in SEQUENCE or name in of_examples:
                    got, wanted = together[name][r, slot], expected[i]
                else:
                    here = slice(starts[r, slot], starts[r, slot] + len(texts[i]))
                    got, wanted = together[name][r, here], expected[i, : len(texts[i])]
                np.testing.assert_allclose(got, wanted, **CLOSE, err_msg=name)


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "pretraining"), *[pair for pair in DISTINCT if pair[1] == "masked-lm"]],
)
def test_masked_lm_at_positions(family, task, texts):
    """The tokens that are asked for have the logits that they have among all."""
    config = tiny_config(family, task)
    params = random_params(config, task)
    apply = jax.jit(models.apply_fn(models.module_parts(config, task)[0]))
    batch, _ = packed(texts)
    positions = np.array([[3, 0, 8], [0, 2, 2]], np.int32)
    name = "prediction_logits" if task == "pretraining" else "logits"
    whole = outputs_of(apply(params, **batch))
    some = outputs_of(apply(params, **batch, head_positions=positions))
    expected = np.take_along_axis(np.asarray(whole[name]), positions[..., None], 1)
    np.testing.assert_allclose(some[name], expected, **CLOSE)
    for other in whole.keys() - {name}:
        np.testing.assert_allclose(some[other], whole[other], **CLOSE)


@pytest.fixture(scope="module")
def stepped():
    """(gradients, outputs) of a linear loss with dropout on, by options of the module."""

    def run(family, task, **options):
        config = tiny_config(family, task)
        apply = models.apply_fn(models.module_parts(config, task, models.Compute(**options))[0])
        params = random_params(config, task)
        inputs = random_inputs(family, task, 8, np.random.default_rng(0))
        shapes = jax.eval_shape(apply, params, **inputs)
        weights = cotangents(outputs_of(shapes), inputs["attention_mask"])

        def loss(params, inputs):
            out = apply(params, **inputs, key=jax.random.key(1))
            return weighted(out, weights), outputs_of(out)

        return jax.jit(jax.grad(loss, has_aux=True))(params, inputs)

    return run


def assert_close(a, b):
    for (path, x), (_, y) in zip(
        *(jax.tree_util.tree_leaves_with_path(tree) for tree in (a, b)), strict=True
    ):
        np.testing.assert_allclose(x, y, **CLOSE, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("family", "task"),
    [
        (family, task)
        for family, task in KINDS
        if task not in ("token-classification", "question-answering", "next-sentence")
    ],
)
def test_sharded_equals_unsharded(family, task):
    """With dropout on; gradients over meshes are those of test_train.py."""
    mesh = sharding.make_mesh(1, 2, 4)
    config = tiny_config(family, task)
    graphdef, abstract = models.module_parts(config, task)
    apply = jax.jit(models.apply_fn(graphdef))
    params, key = random_params(config, task), jax.random.key(1)
    inputs = random_inputs(family, task, 8, np.random.default_rng(0))
    expected = outputs_of(apply(params, **inputs, key=key))
    params = jax.device_put(params, sharding.state_shardings(mesh, abstract))
    inputs = jax.device_put(inputs, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        assert_close(expected, outputs_of(apply(params, **inputs, key=key)))


def test_unroll_and_remat_change_nothing(stepped):
    """Of the encoder that all families share; test_train.py has the other options."""
    options = {"unroll": 0, "remat": "dots"}
    assert_close(stepped("electra", "masked-lm"), stepped("electra", "masked-lm", **options))


def with_unit_head(config, task):
    """Random parameters whose layers behind the blocks hand each feature on as it is."""

    def unit(path, x):
        if path.startswith(("embeddings", "blocks")):
            return x
        return np.eye(*x.shape, dtype=np.float32) if path.endswith("kernel") else np.zeros_like(x)

    return trees.map_params(unit, random_params(config, task))


def assert_dropped(dropped, plain, share):
    """Half of the features are 0 and the others double, or a `share` is left of two such layers."""
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], np.broadcast_to(2 * plain, kept.shape)[kept], 1e-5)
    assert abs(kept.mean() - share) < 0.1


@pytest.mark.parametrize(
    ("family", "task"),
    [pair for pair in DISTINCT if pair[0] in KIN and pair[1] in SEQUENCE[::2]],
)
def test_heads_for_sequences_drop_out(family, task):
    rates = {"electra": "summary_last_dropout", "distilbert": "seq_classif_dropout"}
    twice = (family, task) in [(f, SEQUENCE[0]) for f in ("roberta", "electra")]
    rate = "hidden_dropout_prob" if twice else rates.get(family, "hidden_dropout_prob")
    config = tiny_config(family, task, **{rate: 0.5})
    graph, _ = models.module_parts(config, task)
    head = graph.merge(with_unit_head(config, task)).head
    x = jnp.full((1, 200, 32), 0.5)
    plain = head.scores(2 * x if twice else x, None)
    assert np.all(plain > 0.2)
    dropped = np.asarray(head.scores(x, jax.random.key(0)))
    assert_dropped(dropped, plain, 0.25 if twice else 0.5)


@pytest.mark.parametrize(
    ("family", "task", "rates"),
    [
        (
            "bert",
            "token-classification",
            {
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "classifier_dropout": 0.5,
            },
        ),
        (
            "distilbert",
            "question-answering",
            {"dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.5},
        ),
    ],
)
def test_heads_for_tokens_drop_out(family, task, rates, texts):
    config = tiny_config(family, task, **rates)
    apply = jax.jit(models.apply_fn(models.module_parts(config, task)[0]))
    params, batch = with_unit_head(config, task), padded(texts)
    plain, dropped = (
        np.stack(list(outputs_of(apply(params, **batch, key=key)).values()))
        for key in (None, jax.random.key(0))
    )
    assert_dropped(dropped, plain, 0.5)


def test_positions_restart_in_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 0, 0, 0]])
    expected = [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 0, 1, 2]]
    np.testing.assert_array_equal(segment_positions(segments), expected)


def test_longest_example():
    assert models.max_tokens(tiny_config("bert")) == 24
    assert models.max_tokens(tiny_config("roberta")) == 24  # of 26 rows of the table
    module = models.build(tiny_config("roberta"), "base", rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="batch has 25 tokens a row, the model has 24 positions"):
        module(jnp.ones((1, 25), jnp.int32))
    # A packed row may be longer than any of its examples.
    segments = jnp.repeat(jnp.array([[1, 2]]), 20, axis=1)
    out = module(jnp.full((1, 40), 7), segment_ids=segments)
    assert np.isfinite(out.last_hidden_state).all()


def test_question_answering_has_two_scores():
    with pytest.raises(InputError, match="num_labels=3; load it with num_labels=2"):
        models.module_parts(tiny_config("bert", num_labels=3), "question-answering")


def test_roberta_counts_from_the_id_of_padding():
    with pytest.raises(InputError, match="pad_token_id: found None, expected 1"):
        models.module_parts(tiny_config("roberta", pad_token_id=None), "base")


def test_tasks_that_a_family_lacks():
    with pytest.raises(InputError, match="roberta has no head for task 'next-sentence'"):
        models.module_parts(tiny_config("roberta"), "next-sentence")


def test_distilbert_has_no_token_types(texts):
    config = tiny_config("distilbert")
    apply = models.apply_fn(models.module_parts(config, "base")[0])
    params, batch = random_params(config, "base"), padded(texts)
    types = np.ones_like(batch["input_ids"])
    np.testing.assert_array_equal(
        apply(params, **batch).last_hidden_state,
        apply(params, **batch, token_type_ids=types).last_hidden_state,
    )


def test_generator_and_discriminator_share_embeddings(texts):
    """Both take one tree of embeddings, from parameters that are otherwise their own."""
    config = tiny_config("electra")
    generator, discriminator = (random_params(config, t) for t in ("masked-lm", "pretraining"))
    apply = {
        task: models.apply_fn(models.module_parts(config, task)[0])
        for task in ("masked-lm", "pretraining")
    }
    inputs = padded(texts)

    def loss(embeddings):
        replaced = apply["masked-lm"]({**generator, "embeddings": embeddings}, **inputs).logits
        found = apply["pretraining"]({**discriminator, "embeddings": embeddings}, **inputs).logits
        return replaced.mean() + found.mean()

    both = jax.grad(loss)(generator["embeddings"])
    assert jax.tree.structure(both) == jax.tree.structure(discriminator["embeddings"])
    assert all(np.any(g) for g in jax.tree.leaves(both))
