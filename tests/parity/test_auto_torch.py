"""What the public classes take beside ids, as PyTorch's do: embeddings and masks of other axes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoders import random_inputs
from test_encoders_torch import compare_outputs, outputs_of, pair

from jaxllm.models import FAMILIES

T = 12


def run_both(ours, theirs, inputs, implementation="eager"):
    """(our output, PyTorch's) of numpy arrays; integers become long, as PyTorch wants them."""
    kinds = {"i": torch.long, "f": torch.float32, "b": torch.bool}
    tensors = {name: torch.tensor(x, dtype=kinds[x.dtype.kind]) for name, x in inputs.items()}
    theirs.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = theirs(**tensors)
    theirs.set_attn_implementation("eager")  # as it was: other tests have this model, too
    return ours(**inputs), expected


def random_mask(rng, *shape):
    """Every query sees itself, and three of four other keys."""
    return (rng.random((*shape, T)) < 0.75) | np.eye(T, dtype=bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_and_a_mask_of_heads(family, rng):
    """Embeddings in the place of ids, and a float mask [B, N, T, S], which is added."""
    inputs = random_inputs(family, "base", T, rng)
    ids = inputs.pop("input_ids")
    ours, theirs = pair(family, "base")
    width = ours.params["embeddings"]["word"]["embedding"].shape[1]
    inputs["inputs_embeds"] = 0.3 * rng.standard_normal((*ids.shape, width), np.float32)
    inputs["attention_mask"] = rng.standard_normal((2, 4, T, T), np.float32)
    out, expected = run_both(ours, theirs, inputs)
    compare_outputs(outputs_of(out), expected)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_masks_of_queries(family, rng):
    """A bool mask [B, 1, T, S] and its like of 3 axes; of ModernBERT it replaces the window."""
    ours, theirs = pair(family, "base")
    mask = random_mask(rng, 2, T)
    inputs = {"input_ids": random_inputs(family, "base", T, rng)["input_ids"]}
    out, expected = run_both(ours, theirs, inputs | {"attention_mask": mask[:, None]}, "sdpa")
    compare_outputs(outputs_of(out), expected)
    numbers = jnp.asarray(mask, jnp.int32)
    additive = np.where(mask, 0, -np.inf).astype(np.float32)
    for same in (mask, numbers, additive, jnp.asarray(additive)[:, None]):
        again = outputs_of(ours.apply(ours.params, **inputs, attention_mask=same))
        compare_outputs(again, expected)


def test_choices_are_embedded(rng):
    ours, theirs = pair("bert", "multiple-choice")
    inputs = random_inputs("bert", "multiple-choice", T, rng)
    embedded = 0.3 * rng.standard_normal((*inputs.pop("input_ids").shape, 32), np.float32)
    out, expected = run_both(ours, theirs, inputs | {"inputs_embeds": embedded})
    compare_outputs(outputs_of(out), expected)
