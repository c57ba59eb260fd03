"""What the tests of pretrained weights share: goldens, a checkpoint to spoil, comparing."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxllm.errors import InputError
from jaxllm.models import module_parts
from jaxllm.nn.sharding import parameter_sharding
from jaxllm.pretrained import hf
from jaxllm.trees import map_params

GOLDEN = Path(__file__).parent / "golden"


class Checkpoint:
    """A copy of the PyTorch pretraining golden whose tensors can be rewritten."""

    def __init__(self, directory):
        self.path = directory
        self.file = directory / "model.safetensors"
        shutil.copytree(GOLDEN / "torch_pretraining", directory)

    def rewrite(self, change):
        """`change` mends the dict of tensors in place, or returns another."""
        tensors = load_file(self.file)
        changed = change(tensors)
        save_file(changed if isinstance(changed, dict) else tensors, self.file)


def spoilt(content, seed):
    """`content` cut, or with bits flipped, pieces swapped, zeros written, bytes drawn or put in.

    Every second time within the first 2,000 bytes, where a format says what follows.
    """
    rng = random.Random(seed)
    data = bytearray(content)
    end = min(len(data), 2000 if seed % 2 else len(data))
    start, other, length = rng.randrange(end), rng.randrange(end), rng.randrange(1, 64)
    match seed // 2 % 6:
        case 0:
            del data[start:]
        case 1:
            data[start] ^= 1 << rng.randrange(8)
        case 2:
            one, two = slice(start, start + length), slice(other, other + length)
            data[one], data[two] = data[two], data[one]
        case 3:
            data[start : start + length] = bytes(length)
        case 4:
            data[start : start + length] = rng.randbytes(length)
        case 5:
            data[start:start] = rng.randbytes(length)
    return bytes(data)


def outcomes(directory, file, task, seeds):
    """{seed: None or the message} of loading a checkpoint whose `file` is spoilt.

    Anything but an InputError is raised.
    """
    path = directory / file
    content, found = path.read_bytes(), {}
    abstract = load(directory, task).abstract
    for seed in seeds:
        path.write_bytes(spoilt(content, seed))
        try:
            config = hf.load_config(directory)
            hf.load_params(directory, config, abstract, init=no_init)
            found[seed] = None
        except InputError as error:
            found[seed] = str(error)
    path.write_bytes(content)
    return found


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


def random_params(config, task, seed=0):
    _, abstract = module_parts(config, task)
    rng = np.random.default_rng(seed)
    return map_params(lambda path, x: rng.standard_normal(x.shape, np.float32), abstract)


def siblings(directory):
    return sorted(file.name for file in directory.parent.iterdir())
