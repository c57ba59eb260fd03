"""The public classes within programs of JAX: exported, with 64 bits, on meshes of jax.make_mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import PAIRS, random_inputs, tiny_config, tiny_model
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxllm
from jaxllm.errors import InputError
from jaxllm.models import Compute

OF_TOKENS = ("masked-lm", "causal-lm", "token-classification", "pretraining")


@pytest.fixture
def classifier():
    return tiny_model()


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "pretraining"), ("roberta", "multiple-choice"), ("modernbert", "masked-lm")],
)
def test_exported_with_symbolic_rows_and_tokens(family, task, rng):
    """One program for every batch and length up to that of the positions, through its bytes."""
    model = tiny_model(family, task)
    b, c, t = export.symbolic_shape("b, c, t", constraints=["1 <= t", "t <= 24"])
    shape = jax.ShapeDtypeStruct((b, c, t) if task == "multiple-choice" else (b, t), np.int32)

    @jax.jit
    def program(params, input_ids, attention_mask):
        return model(input_ids, attention_mask, params=params).to_tuple()

    written = export.export(program)(model.params, shape, shape).serialize()
    program = export.deserialize(written)
    for length in (1, 24):
        inputs = random_inputs(family, task, length, rng)
        inputs.pop("token_type_ids", None)
        out = program.call(model.params, *inputs.values())
        for a, expected in zip(out, model(**inputs).to_tuple(), strict=True):
            np.testing.assert_allclose(a, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"attention": "blocked", "remat": "full"}])
@pytest.mark.parametrize(
    ("family", "task"), [pair for pair in PAIRS if pair[0] in ("electra", "modernbert")]
)
def test_64_bits_and_strict_promotion_change_nothing(family, task, options, rng):
    """Traced, forward and backward: a type that is mixed with another would stop it."""
    model = tiny_model(family, task, Compute(**options))
    inputs = random_inputs(family, task, 8, rng)
    labels = {"start_positions": [0, 1], "end_positions": [2, 3]}
    if task != "question-answering":
        shape = inputs["input_ids"].shape if task in OF_TOKENS else 2
        labels = {"labels": np.ones(shape, int)}

    def loss(params, key):
        out = model(**inputs, **({} if task == "base" else labels), params=params, key=key)
        return out.last_hidden_state.sum() if task == "base" else out.loss

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        value, grads = jax.eval_shape(jax.value_and_grad(loss), model.params, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves((value, grads))} == {jnp.dtype("float32")}


def test_64_bits_give_the_same_numbers(classifier, rng):
    inputs = random_inputs("bert", "sequence-classification", 8, rng)
    expected = classifier(**inputs, labels=[0, 2])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide = {name: x.astype(np.int64) for name, x in inputs.items()}
        out = classifier(**wide, labels=np.array([0, 2]))
        resized = jaxllm.AutoModelForMaskedLM.from_config(tiny_config("bert"), seed=1)
        resized.resize_token_embeddings(120)
    assert {x.dtype for x in jax.tree.leaves(resized.params)} == {jnp.dtype("float32")}
    assert out.logits.dtype == out.loss.dtype == jnp.float32
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-5)


AXES = [("rows", "model"), ("data", "fsdp", "tensor")]


def mesh_of(axes, kind=None):
    """As jax.make_mesh makes one, or with axes of one kind."""
    sizes = (4, 2) if len(axes) == 2 else (2, 2, 2)
    kinds = {} if kind is None else {"axis_types": (kind,) * len(axes)}
    return jax.make_mesh(sizes, axes, **kinds)


@pytest.mark.parametrize("axes", AXES)
def test_rows_over_the_axes_of_a_mesh(axes, classifier, rng):
    """Split over Auto axes they are computed; what is whole may live beside Explicit ones."""
    inputs = random_inputs("bert", "sequence-classification", 8, rng)
    inputs = {name: np.repeat(x, 4, axis=0) for name, x in inputs.items()}
    expected = classifier(**inputs).logits
    mesh = mesh_of(axes, AxisType.Auto)
    split = jax.device_put(inputs, NamedSharding(mesh, P(axes[0])))
    with jax.set_mesh(mesh):
        out = classifier(**split).logits
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    with jax.set_mesh(mesh_of(axes)):
        np.testing.assert_allclose(classifier(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", AXES)
def test_explicit_axes_are_refused_with_the_way_out(axes, classifier):
    mesh = mesh_of(axes)
    ids = jax.device_put(np.ones((8, 4), int), NamedSharding(mesh, P(axes[0])))
    message = (
        rf"an array \[8, 4\] is split as .*'{axes[0]}'.* axes are Explicit, as those of .*; make "
        rf"the mesh with axis_types=\(jax.sharding.AxisType.Auto,\) \* {len(axes)}"
    )
    with pytest.raises(InputError, match=message):
        classifier(ids)
    with jax.set_mesh(mesh), pytest.raises(InputError, match=message):
        jax.jit(classifier.apply)(classifier.params, input_ids=ids)
    table = classifier.params["embeddings"]["word"]["embedding"][:96]
    split = jax.device_put(table, NamedSharding(mesh, P(None, axes[1])))
    params = classifier.params | {"embeddings": {"word": {"embedding": split}}}
    with pytest.raises(InputError, match=r"an array \[96, 32\] is split as"):
        classifier(np.ones((1, 4), int), params=params)
