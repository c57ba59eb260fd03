"""Weights in: goldens, the name table, old names, damaged files, shardings, memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxllm
from jaxllm.errors import InputError
from jaxllm.models import apply_fn, module_parts
from jaxllm.pretrained import FAMILIES, flax_msgpack, formats, hf, loading
from jaxllm.sharding import make_mesh, map_params, parameter_sharding

GOLDEN = Path(__file__).parent / "golden"
LOAD_MEMORY = Path(__file__).parent / "load_memory.py"
TASKS = ["base", "masked-lm", "sequence-classification"]
BERT = FAMILIES["bert"]
EXPECTED = {
    "flax_sharded": "flax_sequence_classification",
    "flax_safetensors": "flax_sequence_classification",
}


def leaves_of(tree):
    leaves = {}
    map_params(leaves.__setitem__, tree)
    return leaves


def no_init(path):
    raise AssertionError(f"{path} was newly initialised")


def load(directory, task, *, init=no_init, mesh=None, **overrides):
    config = hf.load_config(directory, **overrides)
    graphdef, abstract = module_parts(config, task)
    if mesh is not None:
        abstract = map_params(
            lambda path, x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=parameter_sharding(mesh, path, x.shape)
            ),
            abstract,
        )
    params, report = hf.load_params(directory, config, abstract, init=init)
    return SimpleNamespace(
        config=config, graphdef=graphdef, abstract=abstract, params=params, report=report
    )


def assert_same(params, expected):
    params, expected = leaves_of(params), leaves_of(expected)
    assert params.keys() == expected.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the PyTorch pretraining golden, and a function that rewrites its tensors."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "torch_pretraining", directory)

    def rewrite(change):
        tensors = load_file(directory / "model.safetensors")
        changed = change(tensors)
        save_file(
            changed if isinstance(changed, dict) else tensors, directory / "model.safetensors"
        )

    return SimpleNamespace(path=directory, rewrite=rewrite)


# ---- reading


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
    ],
)
def test_golden_outputs(name, task, output, of):
    expected = np.load(GOLDEN / EXPECTED.get(name, name) / "expected.npz")
    model = load(GOLDEN / name, task)
    inputs = {
        key: jnp.asarray(expected[key], jnp.int32)
        for key in ("input_ids", "attention_mask", "token_type_ids")
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


# ---- what does not fit


def test_every_misfit_is_named_in_one_message(checkpoint):
    def spoil(tensors):
        del tensors["bert.encoder.layer.1.output.dense.bias"]
        tensors["bert.encoder.layer.0.output.dense.bias"] = np.zeros(31, np.float32)
        tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
        tensors["bert.embeddings.rotary.weight"] = np.zeros(32, np.float32)
        tensors["cls.predictions.transform.dense.bias"] = np.zeros(32, np.int32)

    checkpoint.rewrite(spoil)
    with pytest.raises(InputError) as caught:
        load(checkpoint.path, "masked-lm")
    missing, unexpected, wrong = (
        str(caught.value).split(f"\n  {word}: ")[1] for word in ("missing", "unexpected", "wrong")
    )
    assert missing.startswith(
        "1\n    bert.encoder.layer.1.output.dense.bias (for blocks/mlp/down/bias)"
    )
    assert unexpected.startswith(
        "2\n    bert.embeddings.rotary.weight\n    bert.encoder.layer.2.output.dense.bias"
    )
    assert "bert.encoder.layer.0.output.dense.bias (31,), expected (32,)" in wrong
    assert "cls.predictions.transform.dense.bias int32, expected a float dtype" in wrong


def test_half_a_head_is_missing_not_new(checkpoint):
    checkpoint.rewrite(lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    with pytest.raises(
        InputError, match=r"missing: 1\n +bert\.pooler\.dense\.bias \(for pooler/bias\)"
    ):
        load(checkpoint.path, "base")


def test_transposed_kernel_of_a_rectangular_layer_is_refused(checkpoint):
    name = "bert.encoder.layer.0.intermediate.dense.weight"

    def transpose(tensors):
        tensors[name] = tensors[name].T.copy()

    checkpoint.rewrite(transpose)
    with pytest.raises(InputError, match=rf"{name} \(32, 64\), expected \(64, 32\)"):
        load(checkpoint.path, "base")


def test_one_parameter_under_two_names(checkpoint):
    def double(tensors):
        tensors["embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"].copy()

    checkpoint.rewrite(double)
    with pytest.raises(InputError, match=r"embeddings\.LayerNorm\.gamma.*are both"):
        load(checkpoint.path, "base")


@pytest.mark.parametrize(
    "keep", [0, 5, 100, -1], ids=["empty", "in length", "in header", "last byte"]
)
def test_truncated_safetensors(checkpoint, keep):
    file = checkpoint.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        InputError, match=rf"model\.safetensors \({file.stat().st_size} bytes\) is a truncated"
    ):
        load(checkpoint.path, "base")


def test_truncated_safetensors_says_what_was_expected(checkpoint):
    file = checkpoint.path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(InputError, match=f"expected {size} bytes"):
        load(checkpoint.path, "base")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 1000,
        (11).to_bytes(8, "little") + b'{"a": "abc"',
        (12).to_bytes(8, "little") + b'{"a": [1,2]}',
        (2).to_bytes(8, "little") + b"[]",
        (63).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}         xxxx',
    ],
    ids=["noise", "no json", "no entry", "no object", "wrong size"],
)
def test_damaged_safetensors_header(checkpoint, content):
    file = checkpoint.path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors .*damaged file"):
        load(checkpoint.path, "base")


def test_unknown_safetensors_dtype(checkpoint):
    header = b'{"w":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}'
    file = checkpoint.path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match="tensor w has dtype F4; expected one of F64"):
        load(checkpoint.path, "base")


@pytest.mark.parametrize("keep", [0, 1, 50, 3000, -1])
def test_truncated_msgpack(tmp_path, keep):
    shutil.copytree(GOLDEN / "flax_masked_lm", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        InputError, match=rf"flax_model\.msgpack \({file.stat().st_size} bytes\) is"
    ):
        formats.read_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xc1" * 10,
        b"\x91" * 5000,
        b"\x81\x91\x01\x02",
        b"\x05",
        b"\x81\xa1a\xd5\x01\x00\x00",
        b"\xdf" + b"\xff" * 9,
    ],
    ids=["unused tag", "deep", "odd key", "a number", "no array", "endless"],
)
def test_damaged_msgpack(tmp_path, content):
    shutil.copytree(GOLDEN / "flax_masked_lm", tmp_path, dirs_exist_ok=True)
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(InputError, match=r"flax_model\.msgpack .*damaged file"):
        load(tmp_path, "masked-lm")


def test_msgpack_leaf_that_is_no_array(tmp_path):
    shutil.copytree(GOLDEN / "flax_masked_lm", tmp_path, dirs_exist_ok=True)
    content = flax.serialization.msgpack_serialize({"bert": {"step": 3}})
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(InputError, match="bert/step holds 3; expected an array"):
        load(tmp_path, "masked-lm")


def test_git_lfs_pointer(checkpoint):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 440473133\n"
    (checkpoint.path / "model.safetensors").write_text(pointer)
    with pytest.raises(InputError, match=r"a git-lfs pointer.*git lfs pull"):
        load(checkpoint.path, "base")


def test_file_that_shrinks_while_it_is_read(checkpoint):
    tensors = formats.read_tensors(checkpoint.path)
    (checkpoint.path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors \(0 bytes\)"):
        tensors["cls.predictions.bias"].read()


def test_sharded_checkpoint_with_a_missing_part(tmp_path):
    shutil.copytree(GOLDEN / "flax_sharded", tmp_path, dirs_exist_ok=True)
    (tmp_path / "flax_model-00002-of-00003.msgpack").unlink()
    with pytest.raises(InputError, match=r"not beside it: flax_model-00002-of-00003\.msgpack"):
        load(tmp_path, "base")


def test_sharded_checkpoint_whose_index_lies(tmp_path):
    shutil.copytree(GOLDEN / "flax_sharded", tmp_path, dirs_exist_ok=True)
    index = tmp_path / "flax_model.msgpack.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["bert/extra"] = "flax_model-00002-of-00003.msgpack"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="do not hold: bert/extra"):
        load(tmp_path, "base")
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(InputError, match='"weight_map"'):
        load(tmp_path, "base")


def test_pickle_without_torch(checkpoint, monkeypatch):
    (checkpoint.path / "model.safetensors").rename(checkpoint.path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"pip install torch.*jaxllm convert .* --weights safetensors"
    ):
        formats.read_tensors(checkpoint.path)


def test_directory_without_weights(checkpoint):
    (checkpoint.path / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"no weights; looked for model\.safetensors, .*pytorch_model\.bin"
    ):
        load(checkpoint.path, "base")


# ---- the table


@pytest.mark.parametrize("task", TASKS)
def test_table_is_a_bijection(tiny_bert_config, task):
    _, abstract = module_parts(tiny_bert_config, task)
    shapes = {path: x.shape for path, x in leaves_of(abstract).items()}
    assert shapes.keys() <= BERT.by_path.keys()
    for flax_names in (False, True):
        owner = {}
        for path, shape in shapes.items():
            leaf = BERT.by_path[path]
            one = shape[1:] if leaf.stacked else shape
            for layer, name in enumerate(leaf.names(shape[0])):
                stored = BERT.flax_name(name) if flax_names else name
                assert stored not in owner
                owner[stored] = (path, layer)
                assert BERT.canonical(stored) == (name, flax_names and stored.endswith("kernel"))
                assert BERT.canonical(BERT.bare(stored))[0] == name
                assert BERT.leaf_of(name) is leaf
                ours = np.arange(np.prod(one)).reshape(one)
                there = leaf.to_stored(ours, flax=flax_names)
                assert there.shape == leaf.stored_shape(one, flax=flax_names)
                np.testing.assert_array_equal(leaf.to_ours(there, one, flax=flax_names), ours)
        stacked = [
            x.shape[0] for path, x in leaves_of(abstract).items() if path.startswith("blocks")
        ]
        assert len(owner) == len(shapes) - len(stacked) + sum(stacked)


def test_table_rows_are_distinct():
    assert len(BERT.by_name) == len(BERT.leaves) == len({leaf.flax_name for leaf in BERT.leaves})
    assert len(BERT.by_path) == sum(bool(leaf.path) for leaf in BERT.leaves)


# ---- where the arrays go


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


# ---- memory


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
                directory / name, params, config, weights=weights, max_shard_bytes=most
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
    assert size <= peak <= 1.2 * size
