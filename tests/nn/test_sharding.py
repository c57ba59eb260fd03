"""The two tables: every parameter once, every misfit by name."""

import jax
import numpy as np
import pytest
from encoders import DECODERS, PAIRS, tiny_config
from jax.sharding import PartitionSpec as P

from jaxllm import models, trees
from jaxllm.config.reading import OptimizerConfig
from jaxllm.errors import InputError
from jaxllm.nn import sharding
from jaxllm.training import optim


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_every_parameter_has_letters_that_fit(family, task):
    _, abstract = models.module_parts(tiny_config(family, task), task)
    mesh = sharding.make_mesh(1, 2, 4)
    shardings = trees.map_params(
        lambda p, x: sharding.parameter_sharding(mesh, p, x.shape), abstract
    )
    flat = trees.flatten(shardings)
    assert flat["blocks/attention/query/kernel"].spec == P(None, "fsdp", "tensor", None)
    assert flat["blocks/mlp/down/kernel"].spec == P(None, "tensor", "fsdp")
    norm = "embeddings/norm/scale" if family not in DECODERS else "final_norm/scale"
    assert flat[norm].spec == P("fsdp")
    assert flat["embeddings/word/embedding"].spec == P(None, "fsdp")  # 99 rows do not divide by 4


def test_optimizer_state_follows_its_parameter(tiny_bert_config):
    _, abstract = models.module_parts(tiny_bert_config, "base")
    mesh = sharding.make_mesh(1, 2, 4)
    tx = optim.make_optimizer(OptimizerConfig(), 10)
    state = jax.eval_shape(tx.init, trees.flatten(abstract))
    adam = sharding.state_shardings(mesh, state)[0]
    for moment in (adam.mu, adam.nu):
        assert moment["blocks/mlp/up/kernel"].spec == P(None, "fsdp", "tensor")
    assert adam.count.spec == P()


def test_factored_moments_are_replicated(tiny_bert_config):
    _, abstract = models.module_parts(tiny_bert_config, "base")
    mesh = sharding.make_mesh(1, 2, 4)
    tx = optim.make_optimizer(OptimizerConfig(name="adafactor", weight_decay=0.0), 10)
    flat = trees.flatten(abstract)
    factored = jax.eval_shape(tx.init, flat)[0][0]
    shardings = sharding.state_shardings(mesh, (factored.v_row, factored.v_col))
    specs = jax.tree.leaves(shardings)
    assert len(specs) > 1
    assert all(s.spec == P() for s in specs)


def test_misfits_are_named():
    mesh = sharding.make_mesh(1, 4, 2)
    with pytest.raises(ValueError, match=r"parameter blocks/router/kernel matches no row"):
        sharding.parameter_sharding(mesh, "blocks/router/kernel", (2, 3))
    with pytest.raises(ValueError, match=r"pooler/kernel has shape .3,., its letters are DE"):
        sharding.parameter_sharding(mesh, "pooler/kernel", (3,))
    with pytest.raises(
        InputError, match=r"pooler/kernel: axis D of 6 does not divide over mesh.fsdp=4"
    ):
        sharding.parameter_sharding(mesh, "pooler/kernel", (6, 6))


def test_mesh_sizes():
    assert dict(sharding.make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(InputError, match=r"has 3 places, there are 8 devices"):
        sharding.make_mesh(3, 1, 1)


def test_rows_are_split_over_data_and_fsdp():
    mesh = sharding.make_mesh(2, 2, 2)
    x = jax.device_put(np.arange(8.0), sharding.batch_sharding(mesh))
    assert {s.data.shape for s in x.addressable_shards} == {(2,)}
    assert sharding.batch_shards(mesh) == 4
