"""Weights that do not fit their model, and files that are damaged: each is named."""

import json
import re
import shutil
import sys

import flax.serialization
import numpy as np
import pytest
from checkpoints import GOLDEN, Checkpoint, load

from jaxllm.errors import InputError
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import formats


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint")


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


@pytest.mark.parametrize("axes", [None, (2, 4, 1)])
@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("bert.encoder.layer.1.output.dense.weight", np.nan, np.float32),
        ("bert.encoder.layer.0.attention.self.key.bias", -np.inf, np.float32),
        ("bert.embeddings.word_embeddings.weight", np.nan, np.float16),
        ("bert.embeddings.LayerNorm.weight", 1e300, np.float64),  # infinite as float32
    ],
)
def test_weights_that_are_no_numbers_are_named(checkpoint, name, value, dtype, axes):
    def spoil(tensors):
        tensors[name] = tensors[name].astype(dtype)
        tensors[name].flat[-1] = value

    checkpoint.rewrite(spoil)
    mesh = None if axes is None else make_mesh(*axes)
    message = rf"model\.safetensors: tensor {re.escape(name)} holds NaN or infinite numbers"
    with pytest.raises(InputError, match=message):
        load(checkpoint.path, "base", mesh=mesh)


def test_large_weights_are_numbers(checkpoint):
    name = "bert.embeddings.LayerNorm.weight"

    def enlarge(tensors):
        tensors[name][:] = 3e38  # the sum of squares is infinite

    checkpoint.rewrite(enlarge)
    scale = load(checkpoint.path, "base").params["embeddings"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, np.full(32, 3e38, np.float32))


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
    with pytest.raises(InputError, match=r"model\.safetensors.* (is damaged|damaged file)"):
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
    with pytest.raises(InputError, match=r"flax_model\.msgpack.* (is damaged|damaged file)"):
        load(tmp_path, "masked-lm")


def test_msgpack_leaf_that_is_no_array(tmp_path):
    shutil.copytree(GOLDEN / "flax_masked_lm", tmp_path, dirs_exist_ok=True)
    content = flax.serialization.msgpack_serialize({"bert": {"step": 3}})
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(InputError, match="bert/step holds 3; expected one array"):
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
