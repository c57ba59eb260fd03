"""What is ModernBERT's alone, beside PyTorch: biases, patterns of layers, pooling, positions, sdpa.

tests/parity/test_encoders_torch.py has each of its heads with one config.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxllm import auto
from jaxllm.models import FAMILIES

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Every bias and dropout, other patterns of layers, and the defaults.
VARIANTS = {
    "default": {},
    "biases": {
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
        "classifier_pooling": "mean",
        "classifier_activation": "relu",
        "hidden_activation": "silu",
        "global_attn_every_n_layers": 2,
    },
    "one layer": {"num_hidden_layers": 1},
    "local first": {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_hidden_layers": 3,
        "classifier_pooling": "mean",
    },
}


def model_class(head):
    return type(f"Auto[{head}]", (auto.PretrainedModel,), {"task": head})


def make_pair(config, head, variant, directory, implementation="eager"):
    """(ours, theirs), the same random weights, biases and norms drawn too."""
    changes = {**VARIANTS[variant], "num_labels": 3}
    attributes = config.to_diff_dict()
    if "global_attn_every_n_layers" in changes or "num_hidden_layers" in changes:
        del attributes["layer_types"]
    config = type(config).from_dict({**attributes, **changes})
    config._attn_implementation = implementation
    torch.manual_seed(0)
    reference = getattr(transformers, FAMILIES["modernbert"].table.architecture(head))(
        config
    ).eval()
    with torch.no_grad():
        for name, p in reference.named_parameters():
            centre = 1.0 if p.ndim == 1 and "norm" in name and "weight" in name else 0.0
            p.copy_(torch.randn_like(p) * 0.2 + centre)
    reference.save_pretrained(directory)
    return model_class(head).from_pretrained(directory), reference


def inputs_of(length, rng, head, pad=0.33):
    """Two rows (for multiple choice two rows of three choices), some padded by a third."""
    shape = (2, 3, length) if head == "multiple-choice" else (2, length)
    mask = np.ones(shape, np.int32)
    mask[1, ..., length - int(length * pad) :] = 0
    ids = rng.integers(1, 99, shape).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask}


def to_torch(inputs):
    return {name: torch.tensor(x).long() for name, x in inputs.items()}


def output_names(head):
    return ["last_hidden_state"] if head == "base" else ["logits"]


def compare(ours, theirs, inputs, head):
    with torch.no_grad():
        expected = theirs(**to_torch(inputs))
    assert_same(ours(**inputs), expected, inputs, head)


def assert_same(out, expected, inputs, head):
    for name in output_names(head):
        a, e = np.asarray(getattr(out, name)), expected[name].detach().numpy()
        assert a.shape == e.shape
        if a.shape[:2] == inputs["input_ids"].shape:  # of padding, implementations may differ
            a, e = (x[inputs["attention_mask"] > 0] for x in (a, e))
        np.testing.assert_allclose(a, e, **TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def pairs(tiny_modernbert_config, tmp_path_factory):
    """(head, variant) -> (ours, theirs), each made once."""
    return functools.cache(
        lambda head, variant="default": make_pair(
            tiny_modernbert_config, head, variant, tmp_path_factory.mktemp("torch")
        )
    )


@pytest.mark.parametrize(
    ("head", "variant"),
    [
        *((h, v) for h in ("masked-lm", "sequence-classification") for v in list(VARIANTS)[1:]),
        ("multiple-choice", "biases"),
    ],
)
def test_there_and_back(head, variant, pairs, tmp_path, rng):
    """PyTorch's checkpoint read here, written here, and read by PyTorch."""
    ours, theirs = pairs(head, variant)
    inputs = inputs_of(17, rng, head)
    compare(ours, theirs, inputs, head)
    ours.save_pretrained(tmp_path)
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with torch.no_grad():
        before, after = (model(**to_torch(inputs)) for model in (theirs, again.eval()))
    for name in output_names(head):  # of padding, implementations may differ
        torch.testing.assert_close(after[name][0], before[name][0], **TOLERANCE)


@pytest.mark.parametrize("pad", [0.0, 0.5])
def test_sdpa(pad, tiny_modernbert_config, tmp_path, rng):
    """PyTorch's fused attention; the other tests have the eager one."""
    ours, theirs = make_pair(tiny_modernbert_config, "base", "default", tmp_path, "sdpa")
    compare(ours, theirs, inputs_of(40, rng, "base", pad), "base")


@pytest.mark.parametrize("positions", ["shifted", "restarting"])
def test_explicit_positions(positions, pairs, rng):
    ours, theirs = pairs("base")
    inputs = inputs_of(20, rng, "base", pad=0.0)
    ids = np.arange(20) * 3 + 1 if positions == "shifted" else np.arange(20) % 7
    compare(ours, theirs, {**inputs, "position_ids": np.stack([ids, ids])}, "base")


@pytest.mark.parametrize(
    ("head", "variant", "length"),
    [("base", "default", 64), ("masked-lm", "biases", 64), ("base", "local first", 64)],
)
def test_outputs_and_gradients(head, variant, length, pairs, tmp_path, rng):
    ours, theirs = pairs(head, variant)
    theirs.zero_grad()
    inputs = inputs_of(length, rng, head)
    expected = theirs(**to_torch(inputs))
    # The loss is the outputs' product with fixed numbers; those of padding are zero.
    factors = {n: rng.normal(size=expected[n].shape).astype(np.float32) for n in output_names(head)}
    for x in factors.values():
        if x.shape[:2] == inputs["input_ids"].shape:
            x *= inputs["attention_mask"].reshape(x.shape[:2] + (1,) * (x.ndim - 2))
    sum((expected[name] * torch.tensor(x)).sum() for name, x in factors.items()).backward()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params):
        out = ours(**inputs, params=params)
        return sum(jnp.sum(getattr(out, n) * x) for n, x in factors.items()), out

    grads, out = step(ours.params)
    assert_same(out, expected, inputs, head)
    # Written out as a checkpoint, a gradient tree has PyTorch's names and layout.
    type(ours)(ours.config, grads).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == {name for name, _ in theirs.named_parameters()}
    for name, p in theirs.named_parameters():
        scale = float(p.grad.abs().max())
        assert scale > 1e-6, name
        # The sums here are large: 1e-5 of the largest element.
        np.testing.assert_allclose(
            written[name] / scale, p.grad.numpy() / scale, **TOLERANCE, err_msg=name
        )
