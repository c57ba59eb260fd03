"""Weights in: goldens, old names, new heads, the name table, shardings, memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints import GOLDEN, Checkpoint, assert_same, leaves_of, load
from encoders import PAIRS, tiny_config
from safetensors.numpy import load_file

import jaxllm
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES, apply_fn, module_parts
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import flax_msgpack, formats, hf, loading
from jaxllm.trees import map_params

LOAD_MEMORY = Path(__file__).parents[1] / "load_memory.py"
BERT = FAMILIES["bert"].table
EXPECTED = {
    "flax_sharded": "flax_sequence_classification",
    "flax_safetensors": "flax_sequence_classification",
}


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("name", "task", "output", "of"),
    [
        ("torch_base", "base", "last_hidden_state", "last_hidden_state"),
        ("torch_base", "base", "pooler_output", "pooler_output"),
        ("torch_sequence_classification", "sequence-classification", "logits", "logits"),
        ("torch_pretraining", "masked-lm", "logits", "prediction_logits"),
        ("flax_sequence_classification", "sequence-classification", "logits", "logits"),
        ("flax_sharded", "sequence-classification", "logits", "logits"),
        ("flax_safetensors", "sequence-classification", "logits", "logits"),
        ("flax_masked_lm", "masked-lm", "logits", "logits"),
        ("flax_bert_pretraining", "pretraining", "prediction_logits", "prediction_logits"),
        ("flax_bert_pretraining", "pretraining", *["seq_relationship_logits"] * 2),
        ("flax_roberta_sequence_classification", "sequence-classification", "logits", "logits"),
        ("flax_xlm_roberta_masked_lm", "masked-lm", "logits", "logits"),
        ("flax_distilbert_masked_lm", "masked-lm", "logits", "logits"),
        ("flax_distilbert_question_answering", "question-answering", *["start_logits"] * 2),
        ("flax_distilbert_question_answering", "question-answering", *["end_logits"] * 2),
        ("flax_electra_pretraining", "pretraining", "logits", "logits"),
        ("flax_electra_multiple_choice", "multiple-choice", "logits", "logits"),
        ("flax_gpt2_causal_lm", "causal-lm", "logits", "logits"),
        ("flax_llama_causal_lm", "causal-lm", "logits", "logits"),
    ],
)
def test_golden_outputs(name, task, output, of):
    expected = np.load(GOLDEN / EXPECTED.get(name, name) / "expected.npz")
    model = load(GOLDEN / name, task)
    inputs = {
        key: jnp.asarray(expected[key], jnp.int32)
        for key in ("input_ids", "attention_mask", "token_type_ids")
        if key in expected
    }
    actual = jax.jit(apply_fn(model.graphdef))(model.params, **inputs)
    actual, wanted = np.asarray(getattr(actual, output)), expected[of]
    if output == "last_hidden_state":  # where nothing attends, implementations may differ
        actual, wanted = (x[expected["attention_mask"] > 0] for x in (actual, wanted))
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_dtypes_become_float32(checkpoint, dtype):
    exact = load(checkpoint.path, "masked-lm").params
    checkpoint.rewrite(lambda tensors: {name: x.astype(dtype) for name, x in tensors.items()})
    params = load(checkpoint.path, "masked-lm").params
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    assert_same(
        params, jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), exact)
    )


def test_msgpack_arrays_that_flax_cut_into_chunks(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "flax_masked_lm", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "flax_model.msgpack"
    tree = flax.serialization.msgpack_restore(file.read_bytes())
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    file.write_bytes(flax.serialization.msgpack_serialize({"params": tree}))
    assert b"__msgpack_chunked_array__" in file.read_bytes()
    assert_same(
        load(tmp_path, "masked-lm").params, load(GOLDEN / "flax_masked_lm", "masked-lm").params
    )


def test_msgpack_values_of_every_kind(tmp_path):
    import msgpack

    value = {
        "n": [0, 127, 128, 70000, 2**40, -1, -32, -33, -70000, None, True, False],
        "s": ["", "a" * 31, "b" * 32, "c" * 300, "d" * 70000],
        "l": [list(range(20)), {str(i): i for i in range(20)}],
    }
    file = tmp_path / "x.msgpack"
    file.write_bytes(msgpack.packb(value))
    with open(file, "rb") as stream:
        scanner = flax_msgpack.Scanner(file, stream, file.stat().st_size)
        assert scanner.value() == value
        assert scanner.position == file.stat().st_size


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"),
        lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta"),
        lambda name: name.removeprefix("bert."),
        lambda name: f"module.{name}",
    ],
    ids=["gamma", "beta", "no prefix", "module"],
)
def test_old_names(checkpoint, rename):
    expected = load(checkpoint.path, "masked-lm").params
    checkpoint.rewrite(lambda tensors: {rename(name): x for name, x in tensors.items()})
    assert any(
        rename(name) in load_file(checkpoint.path / "model.safetensors") for name in BERT.by_name
    )
    assert_same(load(checkpoint.path, "masked-lm").params, expected)


def test_buffers_and_tied_copies_are_left_out(checkpoint):
    expected = load(checkpoint.path, "masked-lm").params

    def add(tensors):
        tensors["bert.embeddings.position_ids"] = np.arange(24)[None]
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ].copy()
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")

    checkpoint.rewrite(add)
    model = load(checkpoint.path, "masked-lm")
    assert_same(model.params, expected)
    assert "cls.predictions.decoder.weight" in model.report.unused

    def untie(tensors):
        tensors["cls.predictions.decoder.weight"][3, 5] += 1

    checkpoint.rewrite(untie)
    with pytest.raises(InputError, match=r"decoder\.weight differs .*word_embeddings\.weight"):
        load(checkpoint.path, "masked-lm")
    load(checkpoint.path, "base")  # does not use them


def test_a_head_that_is_absent_is_new_and_said_so(checkpoint, caplog):
    asked = []

    def init(path):
        asked.append(path)
        return np.full(
            {"classifier/kernel": (32, 5), "classifier/bias": (5,)}[path], 7.0, np.float32
        )

    with caplog.at_level("INFO", logger="jaxllm"):
        model = load(checkpoint.path, "sequence-classification", init=init, num_labels=5)
    assert model.report.new == ["classifier/bias", "classifier/kernel"] == sorted(asked)
    np.testing.assert_array_equal(model.params["classifier"]["kernel"], np.full((32, 5), 7.0))
    tensors = load_file(checkpoint.path / "model.safetensors")
    unused = [name for name in tensors if name.startswith("cls.")]
    assert model.report.unused == sorted(unused)
    warning, info = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage().endswith("to be trained: classifier/bias, classifier/kernel")
    assert all(name in info.getMessage() for name in unused)


def test_bare_weights_into_a_head_and_back(tmp_path):
    """A BertModel's weights fill a classifier's trunk and pooler, and the reverse."""
    bare = load(GOLDEN / "torch_base", "base")
    zeros = load(
        GOLDEN / "torch_base",
        "sequence-classification",
        init=lambda path: np.zeros((32, 2) if "kernel" in path else 2),
    )
    assert zeros.report.new == ["classifier/bias", "classifier/kernel"]
    trunk = {key: value for key, value in zeros.params.items() if key != "classifier"}
    assert_same(trunk, bare.params)
    head = load(GOLDEN / "torch_sequence_classification", "base")
    assert head.report.unused == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_table_is_a_bijection(family, task):
    table = FAMILIES[family].table
    biased = {}
    if family == "modernbert":  # its layers have biases where the config says so
        layers = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
        biased = dict.fromkeys(layers, True)
    _, abstract = module_parts(tiny_config(family, task, **biased), task)
    shapes = {path: x.shape for path, x in leaves_of(abstract).items()}
    assert shapes.keys() <= table.by_path.keys()
    for flax_names in (False, True):
        owner = {}
        for path, shape in shapes.items():
            leaf = table.by_path[path]
            one = shape[1:] if leaf.stacked else shape
            part, parts = leaf.part
            for layer, name in enumerate(leaf.names(shape[0])):
                stored = table.flax_name(name) if flax_names else name
                owners = owner.setdefault(stored, [None] * parts)
                assert owners[part] is None
                owners[part] = (path, layer)
                assert table.canonical(stored) == (name, flax_names and stored.endswith("kernel"))
                bare = table.stored_name(name, "base", flax=flax_names)
                assert table.canonical(bare)[0] == name
                assert table.leaf_of(name).name == leaf.name
                ours = np.arange(np.prod(one)).reshape(one)
                there = leaf.to_stored(ours, flax=flax_names)
                axis = 0 if leaf.is_transposed(flax=flax_names) else -1
                whole = np.concatenate([there] * parts, axis=axis)
                assert whole.shape == leaf.stored_shape(one, flax=flax_names)
                np.testing.assert_array_equal(leaf.to_ours(whole, one, flax=flax_names), ours)
        layers = [
            leaf.names(shapes[path][0]) for path, leaf in table.by_path.items() if path in shapes
        ]
        owners = [one for parts in owner.values() for one in parts]
        assert None not in owners
        assert len(owners) == len(set(owners)) == sum(map(len, layers))


@pytest.mark.parametrize("table", [family.table for family in FAMILIES.values()], ids=FAMILIES)
def test_table_rows_are_distinct(table):
    """Each parameter is a tensor, or a part of one, of its own."""
    tensors = {(leaf.name, leaf.part) for leaf in table.leaves}
    flax_tensors = {(leaf.flax_name, leaf.part) for leaf in table.leaves}
    assert len(table.by_path) == len(tensors) == len(flax_tensors) == len(table.leaves)
    assert len(table.by_name) == sum(leaf.part[0] == 0 for leaf in table.leaves)


@pytest.mark.parametrize("axes", [(1, 1, 1), (8, 1, 1), (2, 4, 1), (1, 2, 4)])
@pytest.mark.parametrize("name", ["torch_sequence_classification", "flax_sharded"])
def test_arrays_land_in_their_sharding(name, axes, monkeypatch):
    plain = leaves_of(load(GOLDEN / name, "sequence-classification").params)
    allocated = []
    empty = loading._empty

    def counting(*arguments):
        allocated.append(empty(*arguments))
        return allocated[-1]

    monkeypatch.setattr(loading, "_empty", counting)
    mesh = make_mesh(*axes, devices=jax.devices()[: np.prod(axes)])
    model = load(GOLDEN / name, "sequence-classification", mesh=mesh)
    struct = leaves_of(model.abstract)
    for path, array in leaves_of(model.params).items():
        assert array.sharding == struct[path].sharding
        np.testing.assert_array_equal(array, plain[path], err_msg=path)
    # Each distinct part is made once, in its own size.
    assert sum(x.size for x in allocated) == sum(x.size for x in plain.values())


def test_a_host_builds_only_what_its_devices_hold(monkeypatch):
    """As on the first of two hosts: half of the layers' width is another's."""
    mesh = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    model = load(GOLDEN / "torch_base", "base", mesh=mesh)
    struct = model.abstract["blocks"]["mlp"]["up"]["kernel"]
    indices = struct.sharding.addressable_devices_indices_map(struct.shape)
    first = dict(list(indices.items())[:1])
    parts = []
    monkeypatch.setattr(
        type(struct.sharding), "addressable_devices_indices_map", lambda self, shape: first
    )
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, f, dtype: parts.extend(f(i) for i in first.values()),
    )
    family_leaf = BERT.by_path["blocks/mlp/up/kernel"]
    sources = loading.gather(BERT, formats.read_tensors(GOLDEN / "torch_base"), GOLDEN)
    loading.place(struct, family_leaf, [sources[name] for name in family_leaf.names(2)])
    (part,) = parts
    assert part.shape == (2, 16, 64)
    np.testing.assert_array_equal(
        part, np.asarray(model.params["blocks"]["mlp"]["up"]["kernel"])[:, :16]
    )


@pytest.fixture(scope="module")
def bert_base(tmp_path_factory):
    """BERT-base with random numbers, 438 MB, in every format."""
    from transformers import BertConfig

    config = BertConfig()
    rng = np.random.default_rng(0)
    _, abstract = module_parts(config, "masked-lm")
    params = map_params(lambda path, x: rng.random(x.shape, np.float32), abstract)
    directory = tmp_path_factory.mktemp("bert_base")
    for weights in ("safetensors", "flax"):
        for name, most in ((weights, 10**9), (f"{weights}-sharded", 10**8)):
            hf.save_pretrained(
                directory / name, params, config, "masked-lm", weights=weights, max_shard_bytes=most
            )
    yield directory
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fsdp"),
    [
        ("safetensors", 1),
        ("safetensors-sharded", 1),
        ("flax", 1),
        ("flax-sharded", 1),
        ("safetensors", 4),
        ("flax-sharded", 4),
    ],
)
def test_loading_takes_a_fifth_more_than_the_weights(bert_base, name, fsdp):
    command = [sys.executable, str(LOAD_MEMORY), str(bert_base / name), str(fsdp)]
    environment = {**os.environ, "PYTHONPATH": str(Path(jaxllm.__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    peak, size = map(int, run.stdout.split())
    assert size > 430e6
    assert 0.98 * size <= peak <= 1.2 * size  # less would mean that nothing was measured
