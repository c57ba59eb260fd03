"""Every encoder family with every head beside PyTorch transformers, tiny and random.

Outputs and gradients agree to 1e-5 in float32, and each reads what the other wrote.
"""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoders import (
    KIN,
    KINDS,
    LONGEST,
    PAIRS,
    cotangents,
    outputs_of,
    random_inputs,
    tiny_config,
    weighted,
)
from safetensors.numpy import load_file
from transformers.activations import ACT2FN

from jaxllm import auto, models
from jaxllm.models import FAMILIES
from jaxllm.nn.layers import ACTIVATIONS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# task -> where the encoder's spec has the dropout rate of its head
RATES = {
    "sequence-classification": "classifier_dropout",
    "token-classification": "token_dropout",
    "question-answering": "span_dropout",
    "multiple-choice": "choice_dropout",
}
OURS = {cls.task: cls for cls in auto.PretrainedModel.__subclasses__()}


def random_torch(family, task, **changes):
    """PyTorch's model with every parameter away from its initial value, biases and scales too."""
    config = tiny_config(family, task, **changes)
    config._attn_implementation = "eager"  # sdpa gives no attentions
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[family].table.architecture(task))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@functools.cache
def pair(family, task):
    """(ours, theirs): PyTorch's checkpoint read here."""
    theirs = random_torch(family, task)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return OURS[task].from_pretrained(directory), theirs


def to_torch(inputs):
    return {name: torch.tensor(x).long() for name, x in inputs.items()}


def compare_outputs(out, expected):
    assert set(out) == set(expected) - {"hidden_states", "attentions", "cross_attentions"}
    for name, x in out.items():
        wanted = expected[name].detach()
        np.testing.assert_allclose(x, wanted, **TOLERANCE, err_msg=name)


def compare(ours, theirs, inputs, **options):
    with torch.no_grad():
        expected = theirs(**to_torch(inputs), **options)
    out = ours(**inputs, **options)
    compare_outputs(outputs_of(out), expected)
    for name in options:
        got, wanted = (getattr(o, name.removeprefix("output_")) for o in (out, expected))
        assert len(got) == len(wanted) == 2 + (name == "output_hidden_states")
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("length", [1, 17])
@pytest.mark.parametrize(("family", "task"), KINDS)
def test_hidden_states_and_attentions(family, task, length, rng):
    inputs = random_inputs(family, task, length, rng)
    compare(*pair(family, task), inputs, output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize(
    ("family", "task", "length"),
    [*((*pair, LONGEST) for pair in PAIRS), *((family, "base", 1) for family in KIN)],
)
def test_outputs_and_gradients(family, task, length, rng, tmp_path):
    ours, theirs = pair(family, task)
    inputs = random_inputs(family, task, length, rng)
    shapes = jax.eval_shape(lambda params: ours(**inputs, params=params), ours.params)
    weights = cotangents(outputs_of(shapes), inputs["attention_mask"])
    theirs.zero_grad()
    expected = theirs(**to_torch(inputs))
    sum((expected[name] * torch.tensor(w)).sum() for name, w in weights.items()).backward()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params):
        out = ours(**inputs, params=params)
        return weighted(out, weights), outputs_of(out)

    grads, out = step(ours.params)
    compare_outputs(out, expected)
    # Written out as a PyTorch checkpoint, a gradient tree has PyTorch's names and layout.
    type(ours)(ours.config, grads).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    for name, p in theirs.named_parameters():
        # Written once, under the original's name.
        name = FAMILIES[family].table.ties(ours.config).get(name, name)
        if length > 1:  # a token alone has no choice of keys
            scale = float(p.grad.abs().max())
            assert scale > 1e-6 or name.endswith(("key.bias", "k_lin.bias")), name
        np.testing.assert_allclose(written[name], p.grad, **TOLERANCE, err_msg=name)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_pytorch_loads_what_is_written_here(family, task, rng, tmp_path):
    ours, theirs = pair(family, task)
    ours.save_pretrained(tmp_path)
    again, report = type(theirs).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], (kind, report[kind])
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert again.config.architectures == [type(theirs).__name__]
    inputs = to_torch(random_inputs(family, task, LONGEST, rng))
    with torch.no_grad():
        before, after = (outputs_of(model(**inputs)) for model in (theirs, again.eval()))
    assert before.keys() == after.keys()
    for name, x in before.items():
        torch.testing.assert_close(after[name], x, **TOLERANCE)


@pytest.mark.parametrize(
    ("family", "task"), [pair for pair in PAIRS if pair[0] in KIN and pair[1] in RATES]
)
def test_dropout_rate_of_the_head(family, task):
    names = {"distilbert": ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")}
    usual = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    rates = {name: 0.11 + i / 100 for i, name in enumerate(names.get(family, usual))}
    if family == "electra":
        rates["summary_last_dropout"] = 0.2
    theirs = random_torch(family, task, **rates)
    expected = {
        module.p
        for name, module in theirs.named_modules()
        if isinstance(module, torch.nn.Dropout) and not name.startswith(theirs.base_model_prefix)
    }
    spec = models.FAMILIES[family].spec(tiny_config(family, task, **rates))
    assert {getattr(spec, RATES[task])} == (expected or {0.0})


@pytest.mark.parametrize("family", KIN)
def test_position_ids_are_rows_of_the_table(family, rng):
    inputs = random_inputs(family, "base", 9, rng)
    inputs["position_ids"] = rng.integers(0, LONGEST, (2, 9)).astype(np.int32)
    compare(*pair(family, "base"), inputs)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_padding_in_the_middle_has_no_position(family, rng):
    inputs = random_inputs(family, "base", 9, rng)
    inputs["input_ids"][:, 3:5] = 1
    compare(*pair(family, "base"), {"input_ids": inputs["input_ids"]})


@pytest.mark.parametrize("task", ["base", "masked-lm", "multiple-choice"])
def test_electra_with_embeddings_as_wide_as_its_blocks(task, rng, tmp_path):
    theirs = random_torch("electra", task, embedding_size=32, summary_activation="tanh")
    theirs.save_pretrained(tmp_path)
    ours = OURS[task].from_pretrained(tmp_path)
    compare(ours, theirs, random_inputs("electra", task, 9, rng))


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"]
)
def test_activations(activation):
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


def test_of_one_token_type_all_tokens_are(tmp_path, rng):
    """KLUE's RoBERTa comes with a tokenizer of two types; PyTorch runs it without them."""
    task = "sequence-classification"
    theirs = random_torch("roberta", task, type_vocab_size=1)
    theirs.save_pretrained(tmp_path)
    inputs = random_inputs("roberta", task, 12, rng)
    types = jnp.asarray(inputs.pop("token_type_ids"))
    assert types.max() == 1
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(x) for name, x in inputs.items()}).logits
    logits = OURS[task].from_pretrained(tmp_path)(**inputs, token_type_ids=types).logits
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
