"""Adapters beside layers: outputs, merging, dropout, shardings, and what they are put on."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import tiny_config

from jaxllm import models
from jaxllm.adapters import lora
from jaxllm.config.fields import LoraConfig
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES
from jaxllm.nn.layers import Dense, dropout
from jaxllm.nn.sharding import make_mesh, place
from jaxllm.trees import flatten, map_params, unflatten

HEAD = "sequence-classification"
ALL = ["blocks/*", "embeddings/*"]
IDS = np.arange(20, dtype=np.int32).reshape(2, 10) + 5


def adapted(config, head=HEAD, **fields):
    """(graph, abstract parameters) with adapters."""
    spec = LoraConfig(rank=3, **fields)
    graph, abstract = models.module_parts(config, head)
    return lora.adapted(graph, abstract, lora.targets(graph, abstract, head, spec), spec)


def logits(graph, params, **inputs):
    apply = models.apply_fn(graph)
    return jax.jit(lambda params: apply(params, input_ids=IDS, **inputs).logits)(params)


@pytest.fixture(scope="module")
def model(tiny_bert_config):
    """(config, graph, parameters, graph with adapters, parameters with adapters as at the start);
    the model itself has no dropout.
    """
    config = copy.copy(tiny_bert_config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    graph, abstract = models.module_parts(config, HEAD)
    rng = np.random.default_rng(0)
    params = map_params(lambda _, x: 0.2 * rng.standard_normal(x.shape, np.float32), abstract)
    own_graph, own_abstract = adapted(config, targets=ALL, dropout=0.5)
    start = jax.jit(lambda: lora.init(own_abstract, 0))()
    whole = unflatten({**flatten(params), **flatten(start)})
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, own_abstract)
    return config, graph, params, own_graph, whole


def moved(params):
    """The parameters with adapters away from their start."""
    rng = np.random.default_rng(1)
    return map_params(
        lambda path, x: x + 0.3 * rng.standard_normal(x.shape, np.float32) * ("lora" in path),
        params,
    )


def test_at_the_start_outputs_are_those_of_the_base(model):
    _, graph, params, own_graph, whole = model
    np.testing.assert_allclose(logits(own_graph, whole), logits(graph, params), atol=1e-5)


def test_merged_is_unmerged(model):
    _, graph, params, own_graph, whole = model
    whole = moved(whole)
    merged = lora.merge(whole, 16.0 / 3)
    found = logits(own_graph, whole)
    np.testing.assert_allclose(found, logits(graph, merged), rtol=1e-4, atol=1e-5)
    assert np.abs(found - logits(graph, params)).max() > 0.1
    assert flatten(merged).keys() == flatten(params).keys()
    again = jax.jit(lora.merge, static_argnums=1)(whole, 16.0 / 3)  # and it is pure
    np.testing.assert_allclose(
        again["blocks"]["mlp"]["up"]["kernel"], merged["blocks"]["mlp"]["up"]["kernel"], rtol=1e-5
    )


def test_a_key_turns_on_dropout(model):
    """Of the adapters alone, as the model has none."""
    _, _, _, graph, whole = model
    apply = jax.jit(lambda params, key: models.apply_fn(graph)(params, input_ids=IDS, key=key))
    flat, drops = flatten(moved(whole)), []
    for block in (0, 1):  # only this one has an adapter that adds anything
        kept = (np.arange(2) == block)[:, None, None]
        own = {p: x * (p == "blocks/mlp/down/lora_b") for p, x in flat.items() if "lora_b" in p}
        own["blocks/mlp/down/lora_b"] = own["blocks/mlp/down/lora_b"] * kept
        params = unflatten({**flat, **own})
        first, second = (apply(params, jax.random.key(i)).logits for i in (0, 1))
        drops.append(first - logits(graph, params))
        assert np.abs(drops[-1]).max() > 1e-3
        assert np.abs(first - second).max() > 1e-3
        np.testing.assert_array_equal(first, apply(params, jax.random.key(0)).logits)


def test_each_layer_has_a_key_of_its_own(model):
    *_, graph, whole = model

    @jax.jit
    def keys(params, key):
        module = graph.merge(params)
        module(input_ids=IDS, key=key)
        blocks = module._module.stack.blocks
        return [x.key[...] for x in (blocks.attention.query, blocks.attention.value, blocks.mlp.up)]

    found = np.concatenate(keys(whole, jax.random.key(0)))
    assert len(found) == 6  # of three layers in two blocks
    assert len({tuple(words) for words in found.tolist()}) == 6


def test_dropout_is_that_of_the_adapter_input(rng):
    """y = x W + scale * dropout(x) A B, and W sees all of x."""
    from flax import nnx

    base = Dense((6,), (2, 4), stddev=1.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    a, b = rng.standard_normal((6, 3), np.float32), rng.standard_normal((3, 2, 4), np.float32)
    x, key = rng.standard_normal((5, 6), np.float32), jax.random.key_data(jax.random.key(3))
    layer = lora.LoraDense(base, a, b, 2.0, 0.5).with_key(key)
    added = 2.0 * (np.asarray(dropout(jnp.asarray(x), 0.5, key)) @ a) @ b.reshape(3, 8)
    np.testing.assert_allclose(layer(x), base(x) + added.reshape(5, 2, 4), rtol=1e-5, atol=1e-5)


def test_random_adapters_are_drawn_as_peft_draws_them(model):
    *_, whole = model
    flat = {path: np.asarray(x) for path, x in flatten(whole).items() if "lora" in path}
    a = flat["blocks/mlp/down/lora_a"]  # 64 inputs
    assert 0.9 / 8 < np.abs(a).max() <= 1 / 8
    assert np.abs(a[0] - a[1]).max() > 0.01
    assert not flat["blocks/mlp/down/lora_b"].any()
    assert not flat["embeddings/word/lora_a"].any()
    assert 0.6 < flat["embeddings/word/lora_b"].std() < 1.4
    others = lora.init(adapted(model[0])[1], 1)
    first, second = (x["blocks"]["attention"]["query"]["lora_a"] for x in (whole, others))
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_adapters_and_their_shardings(family):
    """The default: query and value; all layers: each dense one and each table, and no other."""
    config = tiny_config(family, HEAD)
    _, abstract = adapted(config)
    layers = {path.rpartition("/")[0] for path in flatten(abstract) if lora.is_adapter(path)}
    assert layers == {"blocks/attention/query", "blocks/attention/value"}
    _, abstract = adapted(config, targets=ALL)
    flat = flatten(abstract)
    weights = ("/kernel", "/embedding")
    trunk = [p for p in flat if p.startswith(("blocks/", "embeddings/")) and p.endswith(weights)]
    assert sum(map(lora.is_adapter, flat)) == 2 * len(trunk)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = flatten(place(mesh, abstract))
    for path in trunk:
        weight, layer = placed[path].sharding.spec, path.rpartition("/")[0]
        a, b = (placed[f"{layer}/{name}"].sharding.spec for name in ("lora_a", "lora_b"))
        lead = path.startswith("blocks/")
        assert (*a[:-1], *b[1 + lead :]) == tuple(weight), path


def test_targets_that_are_none(tiny_bert_config):
    with pytest.raises(InputError, match=r"lora.targets: pattern 'blocks/atention/\*' matches no"):
        adapted(tiny_bert_config, targets=["blocks/*", "blocks/atention/*"])
    with pytest.raises(InputError, match="classifier"):  # heads are trained whole
        adapted(tiny_bert_config, targets=["classifier"])
    with pytest.raises(InputError, match="matches no layer"):
        adapted(tiny_bert_config, targets=["blocks/mlp/norm"])


def test_a_word_table_that_decodes_has_no_adapter(tiny_bert_config):
    """Merged, it would change the decoder; the other tables decode nothing."""
    with pytest.raises(InputError, match="embeddings/word, but this model's decoder"):
        adapted(tiny_bert_config, "masked-lm", targets=["embeddings/*"])
    adapted(tiny_bert_config, "masked-lm", targets=["embeddings/position"])
