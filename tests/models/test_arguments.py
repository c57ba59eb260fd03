"""What the public classes take: embeddings, masks of queries, and how the model is computed."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import close, tiny_config, tiny_model

import jaxllm
from jaxllm import auto
from jaxllm.errors import InputError

B, T, D, N = 2, 10, 32, 4


@pytest.fixture
def ids(rng):
    return rng.integers(2, 99, (B, T))


def embedded(model, ids):
    return jnp.asarray(model.params["embeddings"]["word"]["embedding"])[ids]


def test_embeddings_are_rows_of_the_table(ids):
    model = tiny_model()
    expected = model(ids)
    close(model(inputs_embeds=embedded(model, ids)), expected)
    close(model(inputs_embeds=np.asarray(embedded(model, ids), np.float64)), expected)


def test_packed_embeddings(ids):
    model = tiny_model()
    packing = {"segment_ids": np.repeat([[1, 2]], T // 2, 1), "head_positions": [[0, 2]]}
    expected = model(ids[:1], **packing)
    close(model(inputs_embeds=embedded(model, ids[:1]), **packing), expected)


def test_the_gradient_of_embeddings(ids):
    """Adversarial training and attributions need it: checked along one direction."""
    model = tiny_model()
    embeds = embedded(model, ids)

    @jax.jit
    def score(embeds):
        return model(inputs_embeds=embeds).logits.sum()

    slope = jnp.sum(jax.grad(score)(embeds) * embeds)
    step = 1e-2
    moved = (score(embeds * (1 + step)) - score(embeds * (1 - step))) / (2 * step)
    np.testing.assert_allclose(slope, moved, rtol=2e-2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "expected input_ids or inputs_embeds, found neither"),
        ({"input_ids": 1, "inputs_embeds": 1}, "found input_ids and inputs_embeds"),
        ({"inputs_embeds": np.ones((B, T, D), int)}, "type int64, expected floating numbers"),
        ({"inputs_embeds": np.ones((B, T, 16))}, r"\[2, 10, 16\], expected \[rows, tokens, 32\]$"),
        ({"inputs_embeds": np.ones((B, D))}, r"\[2, 32\], expected \[rows, tokens, 32\]$"),
        ({"inputs_embeds": np.ones((B, 0, D))}, r"\[2, 0, 32\], expected"),
        ({"inputs_embeds": np.ones((B, 3, T, D))}, r"\[2, 3, 10, 32\], expected"),
        (
            {"inputs_embeds": np.ones((B, T, D)), "attention_mask": np.ones((B, T + 1), int)},
            r"attention_mask: found the shape \[2, 11\], expected \[2, 10\]",
        ),
    ],
)
def test_embeddings_that_do_not_fit(inputs, message):
    with pytest.raises(InputError, match=message):
        tiny_model()(**inputs)


def test_electra_embeds_narrower_than_its_blocks():
    with pytest.raises(InputError, match=r"\[1, 3, 32\], expected \[rows, tokens, 16\]"):
        tiny_model("electra", "base")(inputs_embeds=np.ones((1, 3, 32)))


def test_masks_of_choices_have_the_shape_of_choices():
    model = tiny_model("bert", "multiple-choice")
    with pytest.raises(InputError, match=r"\[2, 3, 4, 4\], expected \[2, 3, 4\], that of input"):
        model(np.ones((2, 3, 4), int), np.ones((2, 3, 4, 4), int))
    with pytest.raises(InputError, match=r"expected \[rows, .*, 32\] or \[rows, choices, tokens"):
        model(inputs_embeds=np.ones((2, 3)))


def test_a_mask_of_queries_beside_segments(ids):
    """Both count: what the mask shows is seen within the segment only."""
    model = tiny_model("bert", "token-classification")
    segments = np.repeat([[1, 2]], T // 2, 1)
    causal = np.tril(np.ones((1, T, T), bool))
    out = model(ids[:1], causal, segment_ids=segments).logits
    half = model(ids[:1, T // 2 :], causal[:, : T // 2, : T // 2]).logits
    np.testing.assert_allclose(out[:, T // 2 :], half, rtol=1e-5, atol=1e-5)


def test_a_mean_needs_to_know_the_padding(tiny_modernbert_config):
    import copy

    config = copy.deepcopy(tiny_modernbert_config)
    config.classifier_pooling = "mean"
    model = jaxllm.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(InputError, match=r'attention_mask: found 3 axes, .*pooling="cls"'):
        model(np.ones((1, 4), int), np.ones((1, 4, 4), int))


# A function that the caller gives.
def softmax_attention(q, k, v, visibility, *, dropout_rate, key):
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(visibility.mask(), scores, -1e30)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), v)


def uniform_attention(q, k, v, visibility, *, dropout_rate, key):
    return jnp.broadcast_to(v.mean(1, keepdims=True), q.shape)


def with_attention(attention):
    model = jaxllm.AutoModel.from_config(tiny_config("bert"), attention=attention)
    model.params = tiny_model("bert", "base").params
    return model


def test_a_function_as_attention(ids):
    """Its program is its own, and is compiled once for each function."""
    mask = np.arange(T)[None] < [[T], [T - 3]]
    expected = tiny_model("bert", "base")(ids, mask)
    before = auto.model._run._cache_size()
    for _ in range(2):
        close(with_attention(softmax_attention)(ids, mask), expected)
        assert auto.model._run._cache_size() == before + 1
    other = with_attention(uniform_attention)(ids, mask)
    assert auto.model._run._cache_size() == before + 2
    assert not np.allclose(other.last_hidden_state, expected.last_hidden_state, atol=1e-2)
    assert "attention=uniform_attention)" in repr(with_attention(uniform_attention))


def test_what_a_function_as_attention_gets(ids):
    seen = []

    def looks(q, k, v, visibility, *, dropout_rate, key):
        seen.append((q.shape, visibility.queries, dropout_rate, key is None))
        return v

    model = with_attention(looks)
    model(ids)
    model(ids, key=jax.random.key(0))
    assert seen[0] == ((B, T, N, D // N), T, 0.0, True)
    assert seen[-1] == ((B, T, N, D // N), T, 0.1, False)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda q, *_, **__: q[:, 0], r"expected an array \(2, 10, 4, 8\) like the queries"),
        (lambda q, *_, **__: (q, None), "gave tuple, expected an array"),
        (lambda *_, **__: None, "gave NoneType, expected an array"),
    ],
)
def test_attention_of_another_shape_is_refused(gives, message, ids):
    with pytest.raises(InputError, match=f"attention: <lambda> gave .*{message}|{message}"):
        with_attention(gives)(ids)


def test_weights_of_a_function_are_not_kept(ids):
    with pytest.raises(InputError, match="softmax_attention attention has no weights to give"):
        with_attention(softmax_attention)(ids, output_attentions=True)


class Unhashable:
    __hash__ = None

    def __call__(self, q, *_, **__):
        return q


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attention": "auto"}, "attention: found 'auto', expected one of xla, .*, or a function"),
        ({"attention": None}, "attention: found None"),
        ({"attention": Unhashable()}, "attention: found .*, which has no hash"),
        ({"remat": "some"}, "remat: found 'some', expected one of none, full, dots"),
        ({"remat": None}, "remat: found None"),
        ({"unroll": -1}, "unroll: found -1, expected how many blocks"),
        ({"unroll": True}, "unroll: found True"),
        ({"unroll": 1.0}, r"unroll: found 1\.0"),
    ],
)
def test_computations_that_there_are_not(option, message):
    with pytest.raises(InputError, match=message):
        jaxllm.AutoModel.from_config(tiny_config("bert"), **option)


@pytest.mark.parametrize("options", [{"remat": "dots", "unroll": 0}, {"remat": "full"}])
def test_remat_and_unroll_are_those_of_the_program(options, ids, tmp_path):
    model = tiny_model("bert", "token-classification")  # all blocks are in the scan
    model.save_pretrained(tmp_path)
    other = type(model).from_pretrained(tmp_path, **options)

    def grad(model):
        return jax.grad(lambda params: model(ids, params=params).logits.sum())

    close(jax.jit(grad(other))(model.params), jax.jit(grad(model))(model.params))
    program = str(jax.make_jaxpr(grad(other))(model.params))
    assert "remat" in program
    assert ("unroll=2" in program) == ("unroll" in options)


@pytest.mark.parametrize("dtype", ["float16", jnp.float16])
def test_float16(dtype, ids, tmp_path):
    exact = tiny_model("bert", "masked-lm")
    exact.save_pretrained(tmp_path)
    model = type(exact).from_pretrained(tmp_path, dtype=dtype)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}
    mask = np.zeros((B, T), int)
    mask[0, :6] = 1  # the second row is all padding: its numbers are not asked for, but finite
    rounded, wanted = model(ids, mask).logits, exact(ids, mask).logits
    assert rounded.dtype == jnp.float16
    assert np.isfinite(rounded).all()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(rounded[0] / scale, wanted[0] / scale, atol=5e-3)
    assert not np.allclose(rounded[0] / scale, wanted[0] / scale, atol=1e-5)


def test_config_as_a_dict_or_a_path(tmp_path):
    config = tiny_config("roberta")
    expected = jaxllm.AutoModel.from_config(config, seed=3)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for same in (written, config.to_dict(), tmp_path, str(tmp_path)):
        model = jaxllm.AutoModel.from_config(same, seed=3)
        assert model.config.to_dict() == config.to_dict()
        close(model.params, expected.params, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert", "hidden_sise": 32}, "hidden_sise=32 .unknown; did you mean hidden"),
        ({"model_type": "opt"}, "the config: model_type='opt'"),
        ({"model_type": "bert", "hidden_size": 33}, "hidden_size=33 is not divisible"),
        ("no/such/place", "no/such/place"),
        (Path("/"), "has no config.json"),
        (__file__, "is a file; give the directory it is in"),
        (3, "int: expected a config of transformers"),
    ],
)
def test_configs_that_are_none(config, message):
    with pytest.raises(InputError, match=message):
        jaxllm.AutoModel.from_config(config)


def test_apply_and_module_are_the_call(ids):
    model = tiny_model()
    expected = model(ids, output_hidden_states=True)
    out = model.apply(model.params, input_ids=ids, output_hidden_states=True)
    close(out, expected)
    key = jax.random.key(0)
    close(
        jax.jit(model.apply)(model.params, input_ids=jnp.asarray(ids), key=key),
        model(ids, key=key),
    )
    close(model.module(input_ids=jnp.asarray(ids)).logits, expected.logits)
    doubled = jax.tree.map(lambda x: 2 * x, model.params)
    close(model.apply(doubled, input_ids=ids), model(ids, params=doubled))
    before = auto.model._run._cache_size()
    assert "pjit" not in str(
        jax.make_jaxpr(model.apply)(model.params, input_ids=jnp.asarray(ids)).eqns[0].primitive
    )
    assert auto.model._run._cache_size() == before


def test_apply_checks_as_the_call_does(ids):
    model = tiny_model()
    with pytest.raises(InputError, match="input_ids: found 99, expected 0 to 98"):
        model.apply(model.params, input_ids=np.full((1, 2), 99))
    with pytest.raises(
        InputError, match=r"inputs_ids=: expected input_ids, .*; did you mean input_ids"
    ):
        model.apply(model.params, input_ids=ids, inputs_ids=ids)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("input_idss", r"expected input_ids, attention_mask, .*, key; did you mean input_ids\?"),
        ("head_mask", "expected input_ids, .*, labels, .*, output_hidden_states, .*, params, key"),
        ("train", r"give key=jax\.random\.key\(0\): a key turns dropout on"),
        ("dropout_rng", "give it as key="),
        ("return_dict", r"outputs have names, and to_tuple\(\)"),
    ],
)
def test_keywords_of_a_call_that_there_are_not(keyword, message, ids):
    model = tiny_model()
    for call in (model, lambda **given: model.apply(model.params, **given)):
        with pytest.raises(InputError, match=f"^{keyword}=: .*{message}"):
            call(input_ids=ids, **{keyword: True})


def test_repr_says_what_it_is(tiny_bert_config):
    model = tiny_model()
    count = sum(x.size for x in jax.tree.leaves(model.params))
    assert model.num_parameters() == count
    expected = (
        f"AutoModelForSequenceClassification(model_type=bert, parameters={count:,}, "
        "dtype=float32, attention=xla)"
    )
    assert repr(model) == expected
    assert "dtype=float16, attention=blocked)" in repr(
        jaxllm.AutoModel.from_config(tiny_bert_config, dtype="float16", attention="blocked")
    )
