"""What the tests of pretrained weights share: goldens, a checkpoint to spoil, comparing."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxllm.models import module_parts
from jaxllm.pretrained import hf
from jaxllm.sharding import map_params, parameter_sharding

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
