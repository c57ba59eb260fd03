"""The public classes: pure in their parameters, named as in transformers, saved and loaded."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxllm
from jaxllm import auto
from jaxllm.errors import InputError
from jaxllm.models.arguments import dtype_name
from jaxllm.trees import path_name

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = [
    jaxllm.AutoModel,
    jaxllm.AutoModelForMaskedLM,
    jaxllm.AutoModelForSequenceClassification,
]


@pytest.fixture(scope="module")
def classifier():
    return jaxllm.AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / "torch_sequence_classification"
    )


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "torch_sequence_classification" / "expected.npz")
    return {name: arrays[name] for name in arrays.files}


@pytest.fixture
def batch(golden):
    return {name: golden[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def paths(tree):
    return [(path_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def test_logits_are_those_recorded(classifier, batch, golden):
    out = classifier(**batch)
    np.testing.assert_allclose(out.logits, golden["logits"], rtol=1e-5, atol=1e-5)
    assert out.logits.dtype == jnp.float32
    assert classifier.config.num_labels == 3
    assert out.hidden_states is None
    assert out.attentions is None


def test_lists_and_positional_ids(classifier, batch, golden):
    names = ("input_ids", "attention_mask", "token_type_ids")
    out = classifier(*(batch[name].tolist() for name in names))
    np.testing.assert_allclose(out.logits, golden["logits"], rtol=1e-5, atol=1e-5)


def test_base_outputs(batch):
    model = jaxllm.AutoModel.from_pretrained(GOLDEN / "torch_base")
    expected = np.load(GOLDEN / "torch_base" / "expected.npz")
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(out.pooler_output, expected["pooler_output"], rtol=1e-5, atol=1e-5)
    assert out.last_hidden_state.shape == (3, 12, 32)
    assert [x.shape for x in out.hidden_states] == [(3, 12, 32)] * 3
    assert [x.shape for x in out.attentions] == [(3, 4, 12, 12)] * 2
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)


def test_outputs_the_config_asks_for(batch):
    model = jaxllm.AutoModel.from_pretrained(GOLDEN / "torch_base", output_hidden_states=True)
    assert len(model(**batch).hidden_states) == 3
    assert model(**batch, output_hidden_states=False).hidden_states is None


def test_masked_lm_at_positions(batch):
    model = jaxllm.AutoModelForMaskedLM.from_pretrained(GOLDEN / "torch_pretraining")
    expected = np.load(GOLDEN / "torch_pretraining" / "expected.npz")["prediction_logits"]
    np.testing.assert_allclose(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)
    some = model(**batch, head_positions=[[1, 4], [0, 6], [11, 2]]).logits
    np.testing.assert_allclose(some[2, 0], expected[2, 11], rtol=1e-5, atol=1e-5)


def test_packed_rows(classifier, batch):
    """Two examples in one row, with segment ids, give what each gives alone."""
    ids = batch["input_ids"]
    row = np.concatenate([ids[0, :7], ids[2, :5]])[None]
    segments = np.repeat([1, 2], [7, 5])[None]
    packed = classifier(row, segment_ids=segments, head_positions=[[0, 7]]).logits
    assert packed.shape == (1, 2, 3)
    np.testing.assert_allclose(packed[0, 0], classifier(ids[:1, :7]).logits[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 1], classifier(ids[2:, :5]).logits[0], atol=1e-5)


def test_padding_may_be_longer_than_there_are_positions(classifier, batch):
    ids = batch["input_ids"]
    longest = classifier.config.max_position_embeddings
    row = np.zeros((1, 2 * longest + 7), int)
    row[0, :7] = ids[0, :7]
    out = classifier(row, segment_ids=(np.arange(row.size) < 7)[None], head_positions=[[0]])
    np.testing.assert_allclose(out.logits[0, 0], classifier(ids[:1, :7]).logits[0], atol=1e-5)
    hidden = classifier(
        row, segment_ids=(np.arange(row.size) < 7)[None], output_hidden_states=True
    ).hidden_states
    assert np.isfinite(hidden[-1]).all()  # a mean over tokens weights padding by 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", 10_000, r"input_ids: found 10000, expected 0 to \d+"),
        ("input_ids", 2**40, "input_ids: found 1099511627776"),
        ("input_ids", -100, "input_ids: found -100"),
        ("token_type_ids", 2, "token_type_ids: found 2, expected 0 to 1"),
        ("position_ids", 4096, "position_ids: found 4096"),
        ("attention_mask", 2, "attention_mask: found 2, expected 0 to 1; .* are segment_ids"),
        ("segment_ids", -1, "segment_ids: found -1"),
        ("head_positions", 12, "head_positions: found 12, expected 0 to 11"),
        ("head_positions", -1, "head_positions: found -1, expected 0 to 11"),
    ],
)
def test_ids_without_a_row_are_refused(classifier, batch, name, value, message):
    ids = np.zeros_like(batch["input_ids"])
    ids[0, -1] = value
    with pytest.raises(InputError, match=message):
        classifier(**{**batch, name: ids})
    with pytest.raises(InputError, match=message):
        classifier(**{**batch, name: ids.tolist()})
    classifier(**{**batch, name: [list(jnp.asarray(row)) for row in ids]})  # of a device


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", np.ones(12, int), r"the shape \[12\], expected \[rows, tokens\]"),
        ("input_ids", np.ones((3, 2, 12), int), r"the shape \[3, 2, 12\], expected"),
        ("input_ids", np.ones((3, 0), int), r"the shape \[3, 0\], expected"),
        ("input_ids", [[1, 2], [3]], "rows of one length: pad them"),
        ("input_ids", np.ones((3, 12)), "numbers of type float64, expected whole numbers"),
        ("input_ids", jnp.ones((3, 12)), "numbers of type float32"),
        ("input_ids", np.ones((3, 12), bool), "numbers of type bool"),
        ("input_ids", [["a"] * 12] * 3, "input_ids: found numbers of type <U1"),
        ("attention_mask", np.ones((1, 12), int), r"\[1, 12\], expected \[3, 12\], that of input"),
        ("attention_mask", np.ones((3, 11), int), r"\[3, 11\], expected \[3, 12\]"),
        (
            "attention_mask",
            np.ones((3, 12, 11), int),
            r"that of input_ids, or \[3, 12, 12\] or \[3, 4, 12, 12\], 1 for all but the last$",
        ),
        ("attention_mask", np.ones((3, 2, 12, 12), int), r"\[3, 2, 12, 12\], expected"),
        ("attention_mask", np.ones((3, 4, 12, 1), int), r"\[3, 4, 12, 1\], expected"),
        ("attention_mask", np.ones((1, 3, 4, 12, 12), int), r"\[1, 3, 4, 12, 12\], expected"),
        ("attention_mask", np.full((3, 12, 12), 2), "attention_mask: found 2, expected 0 to 1"),
        ("attention_mask", np.ones((3, 12, 12), complex), "of type complex128"),
        ("attention_mask", np.full((3, 12), 0.5), "attention_mask: found numbers of type float64"),
        ("token_type_ids", np.zeros(12, int), r"\[12\], expected \[3, 12\]"),
        ("position_ids", np.zeros((2, 12), int), r"\[2, 12\], expected \[3, 12\]"),
        ("position_ids", np.zeros((3, 12)), "position_ids: found numbers of type float64"),
        ("segment_ids", jnp.ones((1, 12), int), r"segment_ids: found the shape \[1, 12\]"),
        ("segment_ids", np.ones((3, 12)), "segment_ids: found numbers of type float64"),
        ("head_positions", [0, 1, 2], r"\[3\], expected \[3, positions\] beside"),
        ("head_positions", [[0]], r"\[1, 1\], expected \[3, positions\]"),
        ("head_positions", np.zeros((3, 0), int), r"\[3, 0\], expected \[3, positions\]"),
        ("pooled_positions", [[0, 1]], r"pooled_positions: found the shape \[1, 2\]"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(classifier, batch, name, value, message):
    with pytest.raises(InputError, match=message):
        classifier(**{**batch, name: value})


def test_booleans_and_one_row_of_positions_are_what_they_say(classifier, batch, golden):
    mask = batch["attention_mask"] > 0
    positions = np.arange(12)[None]
    out = classifier(**{**batch, "attention_mask": mask, "position_ids": positions})
    np.testing.assert_allclose(out.logits, golden["logits"], rtol=1e-5, atol=1e-5)


def test_rows_and_segments_longer_than_the_positions(classifier):
    ids = np.ones((2, 25), int)  # of 24
    with pytest.raises(InputError, match="25 tokens a row, the model has 24 positions"):
        classifier(ids)
    segments = np.stack([np.arange(25) < 12, np.ones(25, int)])
    with pytest.raises(InputError, match="25 tokens in row 1, the model has 24 positions"):
        classifier(ids, segment_ids=segments)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("torch_dtype", 'give dtype="bfloat16"'),
        ("attn_implementation", "give attention=, xla, .* or a function"),
        ("_do_init", "model.params may be replaced"),
        ("trust_remote_code", "code of a checkpoint is never run"),
        ("num_label", r"did you mean num_labels\?"),
        ("hidden_dropout_probs", r"did you mean hidden_dropout_prob\?"),
        ("atention", r"did you mean attention\?"),
        ("_fast_init", "expected dtype, .*, adapter or an attribute of the model's config$"),
        ("max_length", "expected dtype, attention, remat, unroll, seed, adapter or an attribute"),
    ],
)
def test_keywords_without_an_effect_are_refused(keyword, message):
    for value in (3, None):
        with pytest.raises(InputError, match=f"^{keyword}=: .*{message}"):
            jaxllm.AutoModel.from_pretrained(GOLDEN / "torch_base", **{keyword: value})


def test_keywords_of_from_config(tiny_bert_config):
    for keyword, message in {
        "_do_init": "parameters are always loaded",
        "num_labels": "expected dtype, attention, remat, unroll, seed$",
        "sed": r"expected dtype, .*, seed; did you mean seed\?",
    }.items():
        with pytest.raises(InputError, match=f"^{keyword}=: .*{message}"):
            jaxllm.AutoModel.from_config(tiny_bert_config, **{keyword: 3})


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")])
def test_dtype_by_name_or_type(dtype):
    assert dtype_name(dtype) == "bfloat16"
    assert dtype_name(np.float32) == dtype_name(jnp.float32) == "float32"


@pytest.mark.parametrize("dtype", ["float64", "auto", None, float, np.int32, 3])
def test_dtypes_that_are_not_computed_in_are_refused(dtype, tiny_bert_config):
    with pytest.raises(
        InputError, match=r"^dtype: found .*, expected one of float32, bfloat16, float16$"
    ):
        jaxllm.AutoModel.from_config(tiny_bert_config, dtype=dtype)
    with pytest.raises(InputError, match=r"^dtype: found"):
        jaxllm.AutoModel.from_pretrained(GOLDEN / "torch_base", dtype=dtype)


def test_pure_in_params_under_jit_and_grad(classifier, batch):
    def loss(params, batch):
        return jnp.sum(classifier(**batch, params=params).logits ** 2)

    value, grads = jax.value_and_grad(loss)(classifier.params, batch)
    assert jax.tree.structure(grads) == jax.tree.structure(classifier.params)
    np.testing.assert_allclose(jax.jit(loss)(classifier.params, batch), value, rtol=1e-5)
    assert all(np.any(g) for path, g in paths(grads) if "key/bias" not in path)
    step = 1e-3
    direction = jax.tree.map(lambda g: g / jnp.sqrt(jnp.sum(g**2) + 1e-12), grads)
    moved = [
        loss(jax.tree.map(lambda p, d, s=s: p + s * d, classifier.params, direction), batch)
        for s in (step, -step)
    ]
    slope = sum(
        jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
    )
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * step), slope, rtol=2e-2)


def test_vmap_over_params_and_batch(classifier, batch):
    """Two models at once, as for an ensemble, and a batch of batches."""
    other = jax.tree.map(lambda x: x * 1.5, classifier.params)
    both = jax.tree.map(lambda *x: jnp.stack(x), classifier.params, other)
    ids = jnp.asarray(batch["input_ids"])
    logits = jax.vmap(lambda params: classifier(ids, params=params).logits)(both)
    np.testing.assert_allclose(logits[0], classifier(ids).logits, rtol=1e-5, atol=1e-5)
    assert not np.allclose(logits[0], logits[1])
    np.testing.assert_allclose(
        logits[1], classifier(ids, params=other).logits, rtol=1e-5, atol=1e-5
    )
    rows = jax.vmap(lambda row: classifier(row[None]).logits[0])(ids)
    np.testing.assert_allclose(rows, classifier(ids).logits, rtol=1e-5, atol=1e-5)


def test_params_can_be_replaced(classifier, batch):
    model = jaxllm.AutoModelForSequenceClassification.from_config(classifier.config)
    before = model(**batch).logits
    model.params = classifier.params
    np.testing.assert_array_equal(model(**batch).logits, classifier(**batch).logits)
    assert not np.allclose(before, model(**batch).logits)


def test_a_key_turns_dropout_on(classifier, batch):
    plain = classifier(**batch).logits
    one, same, other = (classifier(**batch, key=jax.random.key(seed)).logits for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, plain)
    keys = jax.random.split(jax.random.key(0), 2)
    several = jax.vmap(lambda key: classifier(**batch, key=key).logits)(keys)
    assert not np.allclose(several[0], several[1])


def test_calls_of_one_shape_compile_once(classifier, batch):
    classifier(**batch)
    before = auto.model._run._cache_size()
    for _ in range(3):
        classifier(**batch)
    assert auto.model._run._cache_size() == before


@pytest.mark.parametrize("cls", CLASSES)
def test_from_config_is_a_function_of_the_seed(cls, tiny_bert_config):
    one, same, other = (cls.from_config(tiny_bert_config, seed=seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one.params, same.params)
    word = [model.params["embeddings"]["word"]["embedding"] for model in (one, other)]
    assert not np.allclose(*word)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(one.params))


def test_from_config_refuses_what_is_not_implemented(tiny_bert_config):
    import copy

    from transformers import OPTConfig

    config = copy.deepcopy(tiny_bert_config)
    config.position_embedding_type = "relative_key"
    with pytest.raises(InputError, match="position_embedding_type='relative_key'"):
        jaxllm.AutoModel.from_config(config)
    with pytest.raises(InputError, match="model_type='opt'"):
        jaxllm.AutoModel.from_config(OPTConfig())
    with pytest.raises(InputError, match="list: expected a config of transformers"):
        jaxllm.AutoModel.from_config([("hidden_size", 32)])
    with pytest.raises(InputError, match="the config: model_type=None, a checkpoint of another"):
        jaxllm.AutoModel.from_config({"hidden_size": 32})
    config = copy.deepcopy(tiny_bert_config)
    config.hidden_dropout_prob = 1.0
    with pytest.raises(InputError, match=r"BertConfig: .*hidden_dropout_prob=1\.0"):
        jaxllm.AutoModel.from_config(config)


def test_bfloat16_computes_in_bfloat16(classifier, batch):
    model = jaxllm.AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / "torch_sequence_classification", dtype=jnp.bfloat16
    )
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(model.params))
    exact, rounded = classifier(**batch).logits, model(**batch).logits
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    assert not np.allclose(rounded, exact, atol=1e-4)


def test_loading_draws_no_random_weights(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("random weights")

    monkeypatch.setattr(auto.model, "init_params", refuse)
    jaxllm.AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / "torch_sequence_classification"
    )


def test_new_head_follows_the_seed_and_is_that_of_from_config():
    models = [
        jaxllm.AutoModelForSequenceClassification.from_pretrained(
            GOLDEN / "torch_base", seed=seed, num_labels=5
        )
        for seed in (0, 0, 1)
    ]
    kernels = [np.asarray(model.params["classifier"]["kernel"]) for model in models]
    assert kernels[0].shape == (32, 5)
    assert 0 < np.std(kernels[0]) < 0.04  # initializer_range = 0.02
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])
    fresh = jaxllm.AutoModelForSequenceClassification.from_config(models[0].config, seed=0)
    np.testing.assert_allclose(kernels[0], fresh.params["classifier"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_loaded_again(cls, weights, tiny_bert_config, tmp_path, batch):
    model = cls.from_config(tiny_bert_config, seed=1)
    model.save_pretrained(tmp_path / "out", weights=weights)
    again = cls.from_pretrained(tmp_path / "out")
    outputs = zip(*(jax.tree.leaves(m(**batch)) for m in (model, again)), strict=True)
    for one, other in outputs:
        np.testing.assert_array_equal(one, other)


def test_tokenizer_files_go_along(tmp_path, tiny_tokenizer_dir):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "torch_base", source)
    shutil.copy(tiny_tokenizer_dir / "vocab.txt", source)
    jaxllm.AutoModel.from_pretrained(source).save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").is_file()


def test_num_labels_of_a_head_that_is_there():
    with pytest.raises(InputError, match=r"classifier\.weight \(3, 32\), expected \(2, 32\)"):
        jaxllm.AutoModelForSequenceClassification.from_pretrained(
            GOLDEN / "torch_sequence_classification", num_labels=2
        )


def test_labels_given_at_loading_are_saved(tmp_path):
    model = jaxllm.AutoModelForSequenceClassification.from_pretrained(
        GOLDEN / "torch_base", id2label={0: "bad", 1: "good"}
    )
    model.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["label2id"] == {"bad": 0, "good": 1}
    assert saved["architectures"] == ["BertForSequenceClassification"]
