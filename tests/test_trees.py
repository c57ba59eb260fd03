"""Paths and trees, there and back."""

import jax
import numpy as np
import optax
import pytest

from jaxllm.trees import flatten, leaf_at, map_params, unflatten

TREE = {"blocks": {"mlp": {"up": {"kernel": 1, "bias": 2}}}, "norm": {"scale": 3}}
FLAT = {"blocks/mlp/up/kernel": 1, "blocks/mlp/up/bias": 2, "norm/scale": 3}


def test_there_and_back():
    assert flatten(TREE) == FLAT
    assert unflatten(FLAT) == TREE
    assert map_params(lambda path, x: (path, 2 * x), TREE)["norm"] == {"scale": ("norm/scale", 6)}


def test_what_is_at_a_path():
    assert leaf_at(TREE, "blocks/mlp/up/bias") == 2
    assert leaf_at(TREE, "blocks/mlp") == TREE["blocks"]["mlp"]
    with pytest.raises(KeyError):
        leaf_at(TREE, "blocks/attention")


def test_of_states_fields_and_places_are_names():
    state = optax.sgd(0.1, momentum=0.9).init({"norm": {"scale": np.ones(2)}})
    paths = [path for path in flatten(state) if path.endswith("scale")]
    assert paths == ["0/trace/norm/scale"]
    assert jax.tree.leaves(state)[0] is flatten(state)[paths[0]]


def test_a_leaf_has_nothing_behind_it():
    with pytest.raises(ValueError, match="a/b: a is a leaf"):
        unflatten({"a": 1, "a/b": 2})
