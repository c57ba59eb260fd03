"""BERT beside PyTorch transformers, tiny and random: outputs and gradients to 1e-5 in float32."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxllm import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
HEADS = {
    "base": (AutoModel, transformers.BertModel),
    "masked-lm": (AutoModelForMaskedLM, transformers.BertForMaskedLM),
    "sequence-classification": (
        AutoModelForSequenceClassification,
        transformers.BertForSequenceClassification,
    ),
}


@pytest.fixture(scope="module")
def pairs(tiny_bert_config, tmp_path_factory):
    """head -> (ours, theirs), the same random weights, biases and norms drawn too."""
    made = {}
    for head, (ours, theirs) in HEADS.items():
        config = copy.deepcopy(tiny_bert_config)
        config.num_labels = 3
        config.initializer_range = 0.3  # weights large enough that a wrong term shows
        torch.manual_seed(0)
        config._attn_implementation = "eager"  # sdpa gives no attentions
        reference = theirs(config).eval()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                if p.ndim == 1:
                    p.copy_(
                        torch.randn_like(p) * 0.3 + (1.0 if "LayerNorm.weight" in name else 0.0)
                    )
        directory = tmp_path_factory.mktemp(head)
        reference.save_pretrained(directory)
        made[head] = (ours.from_pretrained(directory), reference)
    return made


def inputs_of(length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two rows, the second padded by a third, with both token types.

    No id is 0: PyTorch's `padding_idx` drops the gradient of that row, which no unmasked token ever
    is.
    """
    mask = np.ones((2, length), np.int32)
    mask[1, length - length // 3 :] = 0
    types = (np.arange(length) >= length // 2).astype(np.int32) * np.ones((2, 1), np.int32)
    ids = rng.integers(1, 99, (2, length)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def to_torch(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(x).long() for name, x in inputs.items()}


@pytest.mark.parametrize("length", [1, 17, 64])
@pytest.mark.parametrize("head", HEADS)
def test_outputs(head, length, pairs, rng):
    ours, theirs = pairs[head]
    inputs = inputs_of(length, rng)
    with torch.no_grad():
        expected = theirs(**to_torch(inputs), output_hidden_states=True, output_attentions=True)
    out = ours(**inputs, output_hidden_states=True, output_attentions=True)
    names = ["last_hidden_state", "pooler_output"] if head == "base" else ["logits"]
    for name in names:
        np.testing.assert_allclose(getattr(out, name), getattr(expected, name), **TOLERANCE)
    for name in ("hidden_states", "attentions"):
        got, wanted = getattr(out, name), getattr(expected, name)
        assert len(got) == len(wanted) == ours.config.num_hidden_layers + (name == "hidden_states")
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("head", ["masked-lm", "sequence-classification"])
def test_gradients(head, pairs, rng, tmp_path):
    ours, theirs = pairs[head]
    inputs = inputs_of(17, rng)
    shape = (2,) if head == "sequence-classification" else (2, 17)
    labels = rng.integers(0, 3, shape)
    theirs.zero_grad()
    theirs(**to_torch(inputs), labels=torch.tensor(labels)).loss.backward()

    def loss(params):
        logits = ours(**inputs, params=params).logits
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_probs, jnp.asarray(labels)[..., None], -1))

    grads = jax.grad(loss)(ours.params)
    # Written out and read back as a PyTorch checkpoint, a gradient tree has PyTorch's names and
    # layout.
    type(ours)(ours.config, grads, None).save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    written = load_file(tmp_path / "model.safetensors")
    compared = 0
    for name, p in theirs.named_parameters():
        if p.grad is None:
            continue
        assert float(p.grad.abs().max()) > 1e-6 or name.endswith("key.bias"), name
        np.testing.assert_allclose(written[name], p.grad, **TOLERANCE, err_msg=name)
        compared += 1
    assert compared == len(list(theirs.parameters()))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_activations(activation):
    from transformers.activations import ACT2FN

    from jaxllm.layers import ACTIVATIONS

    x = np.linspace(-12, 12, 4801, dtype=np.float32)
    expected = ACT2FN[activation](torch.tensor(x)).numpy()
    np.testing.assert_allclose(
        ACTIVATIONS[activation](jnp.asarray(x)), expected, atol=2e-6, rtol=1e-5
    )
    slopes = jax.vmap(jax.grad(ACTIVATIONS[activation]))(jnp.asarray(x))
    t = torch.tensor(x, requires_grad=True)
    ACT2FN[activation](t).sum().backward()
    assert t.grad is not None
    np.testing.assert_allclose(slopes, t.grad.numpy(), atol=5e-6, rtol=1e-5)
