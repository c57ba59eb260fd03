"""Files of weights that are damaged, or made to harm: each is told, and nothing else is raised."""

import json
import os
import shutil

import msgpack
import numpy as np
import pytest
from checkpoints import GOLDEN, Checkpoint, load, outcomes

from jaxllm.errors import InputError
from jaxllm.pretrained import formats


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("name", "task", "file", "least"),
    [
        ("torch_base", "base", "model.safetensors", 20),
        ("torch_base", "base", "config.json", 30),
        ("flax_masked_lm", "masked-lm", "flax_model.msgpack", 15),
        ("flax_sharded", "sequence-classification", "flax_model.msgpack.index.json", 30),
        ("flax_sharded", "sequence-classification", "flax_model-00002-of-00003.msgpack", 15),
    ],
)
def test_a_spoilt_file_is_told(tmp_path, name, task, file, least):
    """`least`: so many of the variants must be found out; a bit within a weight cannot be."""
    shutil.copytree(GOLDEN / name, tmp_path / "model")
    found = outcomes(tmp_path / "model", file, task, range(48))
    messages = [message for message in found.values() if message is not None]
    assert len(messages) >= least
    assert all(str(tmp_path) in message for message in messages)
    load(tmp_path / "model", task)


def write_safetensors(path, entries, size):
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def entry(begin, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensor b to begin at byte 8 and not at 4"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "tensor b to begin at byte 8 and not at 0"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "tensor b to begin at byte 8 and not at 12"),
        ({"a": entry(8, 16)}, 16, "tensor a to begin at byte 0 and not at 8"),
        ({"a": entry(0, 8)}, 12, r"expected \d+ bytes, as its header says"),
        ({"a": entry(0, 16, (-2, -2))}, 16, "sizes of tensor a that are whole numbers"),
        ({"a": entry(0, 8, (True, 2))}, 8, "sizes of tensor a that are whole numbers"),
        ({"a": entry(0.0, 8.0)}, 8, "sizes of tensor a that are whole numbers"),
        ({"a": [0, 8]}, 8, "is damaged"),
        ({"a": entry(0, 8) | {"dtype": ["F32"]}}, 8, "is damaged"),
    ],
)
def test_offsets_and_shapes_of_safetensors(checkpoint, entries, size, message):
    write_safetensors(checkpoint.file, entries, size)
    with pytest.raises(InputError, match=rf"model\.safetensors.*{message}"):
        formats.read_tensors(checkpoint.path)


def test_offsets_in_any_order_of_names(checkpoint):
    write_safetensors(
        checkpoint.file, {"b": entry(8, 16), "a": entry(0, 8), "c": entry(0, 0, [0])}, 16
    )
    assert {name: t.shape for name, t in formats.read_tensors(checkpoint.path).items()} == {
        "a": (2,),
        "b": (2,),
        "c": (0,),
    }


def test_a_header_of_safetensors_is_bounded(checkpoint):
    length = formats.MAX_HEADER + 1
    with open(checkpoint.file, "wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(length + 8)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match="a safetensors header of at most 100000000 bytes"):
        formats.read_tensors(checkpoint.path)


def test_a_header_that_is_deep(checkpoint):
    header = b"[" * 100_000
    checkpoint.file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged \(RecursionError"):
        formats.read_tensors(checkpoint.path)


@pytest.mark.parametrize("dtype", ["O", "S4", "V8", "M8[s]", "complex64", "i4,i4", "nothing"])
def test_arrays_of_a_msgpack_are_numbers(tmp_path, dtype):
    size = 8 if dtype == "nothing" else np.dtype(dtype).itemsize
    array = msgpack.ExtType(1, msgpack.packb([[2], dtype, bytes(2 * size)]))
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb({"a": array}))
    with pytest.raises(InputError, match=r"flax_model\.msgpack.* damaged"):
        formats.read_tensors(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    shutil.copytree(GOLDEN / "flax_sharded", tmp_path / "model")
    one, two = sorted((tmp_path / "model").glob("*-of-*"))[:2]
    shutil.copy(one, two)
    with pytest.raises(
        InputError, match=r"tensor .* is in .*-00001.* and in .*-00002.*in one file"
    ):
        formats.read_tensors(tmp_path / "model")


@pytest.mark.parametrize("value", [None, [], 3, {"a": 3}, {"a": None}])
def test_a_weight_map_of_another_kind(tmp_path, value):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": value}))
    with pytest.raises(InputError, match=r'index\.json: is damaged .*"weight_map" names a file'):
        formats.read_tensors(tmp_path)


def test_a_file_that_may_not_be_read(checkpoint):
    """As root everything may be read, but not a directory in the place of a file's content."""
    tensors = formats.read_tensors(checkpoint.path)
    checkpoint.file.unlink()
    os.mkdir(checkpoint.file)
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read \(Is a directory\)"):
        tensors["cls.predictions.bias"].read()
