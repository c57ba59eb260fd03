"""ModernBERT without torch: packed rows, windows, positions, its checkpoints and configs."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, assert_same, leaves_of, load

from jaxllm import AutoModel, AutoModelForSequenceClassification, auto, models
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES, apply_fn, module_parts
from jaxllm.pretrained import hf
from jaxllm.trees import map_params

MODERNBERT = FAMILIES["modernbert"].table
TASKS = list(models.FAMILIES["modernbert"].heads)
LENGTHS = (11, 1, 9, 3)  # the window is 3 tokens to either side
# A config as those on the Hub are, written by transformers 4.
OLD = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 1,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 2,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 500.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 32,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-05,
    "local_attention": 6,
    "local_rope_theta": 20.0,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "reference_compile": True,
    "sep_token_id": 2,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 99,
}


@pytest.fixture(scope="module")
def config(tiny_modernbert_config):
    config = copy.deepcopy(tiny_modernbert_config)
    config.num_labels = 2
    return config


def model_class(task):
    return type(f"Auto[{task}]", (auto.PretrainedModel,), {"task": task})


def make(task, config):
    """A model with weights so large that a token in or out of a window shows."""
    _, abstract = module_parts(config, task)
    rng = np.random.default_rng(0)

    def draw(path, x):
        centre = 1.0 if path.endswith("scale") else 0.0
        return jnp.asarray(centre + 0.2 * rng.standard_normal(x.shape), jnp.float32)

    return model_class(task)(config, map_params(draw, abstract))


@pytest.fixture
def padded(rng):
    """Four texts, the longest beyond the window, a row each."""
    mask = (np.arange(max(LENGTHS)) < np.asarray(LENGTHS)[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(3, 99, mask.shape).astype(np.int32) * mask,
        "attention_mask": mask,
    }


@pytest.fixture
def packed(padded):
    """The same in two rows of 16 tokens: the longest and the shortest, the others."""
    rows = [(0, 1), (2, 3)]
    ids, segments = np.zeros((2, 2, 16), np.int32)
    starts = np.zeros((2, 2), np.int32)
    for row, texts in enumerate(rows):
        end = 0
        for slot, text in enumerate(texts):
            start, end = end, end + LENGTHS[text]
            ids[row, start:end] = padded["input_ids"][text, : LENGTHS[text]]
            segments[row, start:end] = slot + 1
            starts[row, slot] = start
    return {"input_ids": ids, "segment_ids": segments, "head_positions": starts}


@pytest.mark.parametrize("task", ["sequence-classification", "multiple-choice"])
def test_means_of_packed_texts_are_those_of_padded(task, config, padded, packed):
    """test_encoders.py has each head with the pooling that is the default."""
    config = copy.deepcopy(config)
    config.classifier_pooling = "mean"
    model = make(task, config)
    together, alone = model(**packed).logits, model(**padded).logits
    np.testing.assert_allclose(together.reshape(alone.shape), alone, rtol=1e-5, atol=1e-5)


def test_explicit_positions_of_packed_rows_change_nothing(config, packed):
    """Rotary positions are relative: those that do not restart give the same numbers."""
    model = make("base", config)
    running = np.broadcast_to(np.arange(16), (2, 16))
    real = packed["segment_ids"] > 0
    np.testing.assert_allclose(
        model(**packed).last_hidden_state[real],
        model(**packed, position_ids=running).last_hidden_state[real],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("types", "reach"),
    [
        (["sliding_attention"], 3),
        (["sliding_attention"] * 2, 6),
        (["full_attention"], 19),
        (["sliding_attention", "full_attention"], 19),
    ],
)
def test_how_far_a_token_sees(types, reach, tiny_modernbert_config, rng):
    """By the gradient of the first token's state: of the row's 20 tokens, those within reach."""
    config = copy.deepcopy(tiny_modernbert_config)
    config.layer_types, config.num_hidden_layers = types, len(types)
    model = make("base", config)
    ids = np.arange(3, 23)[None]

    def first(table):
        embeddings = {**model.params["embeddings"], "word": {"embedding": table}}
        out = model(ids, params={**model.params, "embeddings": embeddings})
        return jnp.sum(out.last_hidden_state[0, 0] ** 3)

    slopes = jax.grad(first)(model.params["embeddings"]["word"]["embedding"])
    reached = np.abs(np.asarray(slopes[3:23])).sum(-1) > 0
    assert reached.tolist() == [i <= reach for i in range(20)]


@pytest.mark.parametrize(
    "options", [{"unroll": 0}, {"unroll": 2}, {"remat": "full"}, {"remat": "dots"}]
)
def test_unroll_and_remat_change_nothing(options, config, packed):
    task = "sequence-classification"
    params = make(task, config).params

    def gradients(**options):
        apply = apply_fn(module_parts(config, task, models.Compute(**options))[0])
        inputs = {name: jnp.asarray(x) for name, x in packed.items()}
        return jax.jit(jax.grad(lambda p: jnp.sum(apply(p, **inputs).logits ** 2)))(params)

    plain, changed = gradients(), gradients(**options)
    for path, expected in leaves_of(plain).items():
        scale = np.abs(expected).max()  # these sums are large: 1e-5 of the largest element
        np.testing.assert_allclose(
            leaves_of(changed)[path] / scale, expected / scale, rtol=1e-5, atol=1e-5, err_msg=path
        )


@pytest.mark.parametrize(
    "rate", ["embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"]
)
def test_each_dropout_is_there(rate, config, padded):
    config = copy.deepcopy(config)
    rates = [name for name in vars(config) if name.endswith("_dropout")]
    assert len(rates) == 4
    for name in rates:
        setattr(config, name, 0.5 if name == rate else 0.0)
    model = make("sequence-classification", config)
    plain = model(**padded).logits
    one, same, other = (model(**padded, key=jax.random.key(i)).logits for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, plain)


def test_random_weights(tiny_modernbert_config):
    """Truncated normals; the layers that add to the residual stream are smaller."""
    config = copy.deepcopy(tiny_modernbert_config)
    config.hidden_size, config.intermediate_size = 128, 128
    params = models.init_params(config, "sequence-classification", 0)
    flat = leaves_of(params)
    std = {"output": 0.02 / 8**0.5, "down": 0.02 / 8**0.5, "dense": 0.02 / 8**0.5}
    std["classifier"] = 128**-0.5
    for path, x in flat.items():
        if path.endswith(("kernel", "embedding")):
            expected = std.get(path.split("/")[-2], 0.02)
            assert np.abs(x).max() <= 2 * expected + 1e-7, path
            # A normal cut at twice its standard deviation keeps 0.88 of it.
            np.testing.assert_allclose(np.std(x), 0.88 * expected, rtol=0.1, err_msg=path)
        else:
            np.testing.assert_array_equal(x, 1.0 if path.endswith("scale") else 0.0)


def test_golden():
    directory = GOLDEN / "torch_modernbert"
    expected = np.load(directory / "expected.npz")
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    out = model(expected["input_ids"], expected["attention_mask"])
    np.testing.assert_allclose(out.logits, expected["logits"], rtol=1e-5, atol=1e-5)


def test_converted_there_and_back(tmp_path):
    source = GOLDEN / "torch_modernbert"
    hf.convert(source, tmp_path / "flax", "flax")
    report = hf.convert(tmp_path / "flax", tmp_path / "back", "safetensors")
    assert report.task == "sequence-classification"
    task = "sequence-classification"
    assert_same(load(tmp_path / "back", task).params, load(source, task).params)


def test_a_masked_lm_gives_its_head_to_a_classifier(config, tmp_path):
    """As in transformers: the layers that both have are taken over, the classifier is new."""
    source = make("masked-lm", config)
    source.save_pretrained(tmp_path / "mlm")
    model = load(
        tmp_path / "mlm",
        "sequence-classification",
        init=lambda path: np.zeros((32, 2) if "kernel" in path else 2),
    )
    assert model.report.new == ["classifier/bias", "classifier/kernel"]
    assert model.report.unused == ["decoder.bias"]
    assert_same(model.params["head"], source.params["head"])


def write(directory, **changes):
    (directory / "config.json").write_text(json.dumps({**OLD, **changes}))
    return directory


def test_config_of_transformers_4(tmp_path):
    config = hf.load_config(write(tmp_path))
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
    spec = models.family_of(config).spec(config)
    assert spec.is_global == (True, False, True)
    assert spec.thetas == (20.0, 500.0)
    assert spec.window == (3, 3)
    make("base", config).save_pretrained(tmp_path / "new")
    again = hf.load_config(tmp_path / "new")
    assert again.layer_types == config.layer_types
    assert again.rope_parameters == config.rope_parameters


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tie_word_embeddings", False),
        ("is_decoder", True),
        ("hidden_activation", "gelu_fast"),
        ("classifier_activation", "mish"),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention", "chunked_attention", "full_attention"]),
        ("rope_parameters", {"full_attention": YARN}),
        ("rope_parameters", {"full_attention": 1e4}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("head_dim", 16),
        ("hidden_act", "gelu"),
        ("type_vocab_size", 2),
        ("quantization_config", {"bits": 8}),
    ],
)
def test_attributes_that_change_the_numbers_are_refused(tmp_path, name, value):
    with pytest.raises(InputError, match=rf"config\.json: .* {name}[=.]"):
        hf.load_config(write(tmp_path, **{name: value}))


def test_config_values_that_make_no_model(tmp_path):
    with pytest.raises(InputError, match=r"not a modernbert config: .*classifier_pooling"):
        hf.load_config(write(tmp_path, classifier_pooling="max"))
    with pytest.raises(InputError, match=r"hidden_size=32 .* num_attention_heads=5"):
        hf.load_config(write(tmp_path, num_attention_heads=5))
    config = hf.load_config(write(tmp_path, hidden_size=36, num_attention_heads=12))
    with pytest.raises(ValueError, match="heads of an even size"):
        AutoModel.from_config(config)
    with pytest.raises(InputError, match="num_labels=3; load it with num_labels=2"):
        model_class("question-answering").from_config(hf.load_config(write(tmp_path), num_labels=3))


def test_overfits_a_few_rows(config, packed):
    """Steps of gradient descent on packed rows end near zero loss."""
    model = make("sequence-classification", config)
    labels = jnp.asarray([[0, 1], [1, 0]])

    def loss(params):
        logits = model(**packed, params=params).logits
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1))

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.03 * g, params, grads)

    values, params = [], model.params
    for _ in range(20):
        value, params = step(params)
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]
