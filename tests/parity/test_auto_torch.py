"""What the public classes take and do beside ids, as PyTorch's: embeddings, masks of other axes,
labels, a vocabulary of another size.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoders import KINDS, random_inputs
from test_encoders_torch import OURS, compare_outputs, outputs_of, pair, random_torch

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
    heads = ours.config.num_attention_heads
    inputs["attention_mask"] = rng.standard_normal((2, heads, T, T), np.float32)
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


CLASSES = {
    "masked-lm": 99,
    "causal-lm": 99,
    "token-classification": 3,
    "pretraining": 99,
}  # of tokens


def random_labels(family, task, inputs, rng):
    """Labels of each kind that a task has, some of which do not count."""
    rows = len(inputs["input_ids"])
    if task == "question-answering":  # one behind the row does not count, one below it is 0
        return {"start_positions": np.array([3, T + 5]), "end_positions": np.array([-1, 7])}
    if (family, task) == ("electra", "pretraining"):
        return {"labels": rng.integers(0, 2, inputs["input_ids"].shape)}
    if task not in CLASSES:
        return {"labels": rng.integers(0, 2, rows)}
    labels = rng.integers(0, CLASSES[task], inputs["input_ids"].shape)
    labels[rng.random(labels.shape) < 0.5] = -100
    both = {"next_sentence_label": np.array([1, -100])} if task == "pretraining" else {}
    return {"labels": labels} | both


def same_loss(ours, theirs, inputs):
    out, expected = run_both(ours, theirs, inputs)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-5, atol=1e-5)
    assert next(iter(out)) == next(iter(expected)) == "loss"
    assert out[0].dtype == jnp.float32
    return out


@pytest.mark.parametrize(("family", "task"), [kind for kind in KINDS if kind[1] != "base"])
def test_loss(family, task, rng):
    inputs = random_inputs(family, task, T, rng)
    same_loss(*pair(family, task), inputs | random_labels(family, task, inputs, rng))


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, np.array([2, 0])),
        (None, np.array([[0, 1.0, 1], [0, 0, 0.5]])),
        ("multi_label_classification", np.array([[0, 1.0, 1], [0, 0, 1]])),
        ("regression", np.array([[0.5, -2, 1], [3, 0, 1]])),
    ],
)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_loss_of_each_problem(family, problem, labels, rng, monkeypatch):
    both = pair(family, "sequence-classification")
    for model in both:
        monkeypatch.setattr(model.config, "problem_type", problem)
    inputs = random_inputs(family, "sequence-classification", T, rng)
    same_loss(*both, inputs | {"labels": labels})
    assert both[0].config.problem_type == problem  # PyTorch's has been written to


def test_loss_of_one_number(rng, tmp_path):
    theirs = random_torch("bert", "sequence-classification", num_labels=1)
    theirs.save_pretrained(tmp_path)
    ours = OURS["sequence-classification"].from_pretrained(tmp_path)
    inputs = random_inputs("bert", "sequence-classification", T, rng)
    losses = [
        same_loss(ours, theirs, inputs | {"labels": labels}).loss
        for labels in (np.array([0.5, -2]), np.array([[0.5], [-2]]))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("size", [120, 70])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "modernbert"])
def test_resized_vocabulary(family, size, rng, tmp_path):
    """What transformers makes of it, but for noise; what is saved, its classes load."""
    theirs, task = random_torch(family, "masked-lm"), "masked-lm"
    theirs.save_pretrained(tmp_path)
    ours = OURS[task].from_pretrained(tmp_path)
    before = ours.config
    theirs.resize_token_embeddings(size)
    ours.resize_token_embeddings(size)
    assert (before.vocab_size, ours.config.vocab_size) == (99, size)
    ours.save_pretrained(tmp_path / "saved")
    again, loading = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(loading.values())
    inputs = random_inputs(family, task, T, rng)
    inputs["input_ids"] = rng.integers(2, size, inputs["input_ids"].shape)
    inputs["input_ids"][0, 0] = size - 1
    out, expected = run_both(ours, again, inputs)
    compare_outputs(outputs_of(out), expected)
    _, expected = run_both(ours, theirs, inputs)
    np.testing.assert_allclose(out.logits, expected.logits, atol=2e-3)
