"""Outputs: attributes, the mapping and the tuple of transformers, a pytree, and types."""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxllm
from jaxllm.models.outputs import EncoderOutput, HeadOutput, PretrainingOutput, SpanOutput

PACKAGE = Path(jaxllm.__file__).parent


def test_what_is_there_in_order():
    out = PretrainingOutput(jnp.ones(3), jnp.zeros(2), loss=jnp.full((), 7.0), attentions=())
    assert list(out) == ["loss", "prediction_logits", "seq_relationship_logits", "attentions"]
    assert out.keys() == set(out)
    assert len(out) == 4
    assert out[0] is out["loss"] is out.loss is out.to_tuple()[0]
    assert out[:2] == out.to_tuple()[:2] == (out.loss, out.prediction_logits)
    assert out[-1] == ()
    assert dict(out.items()) == dict(zip(out, out.to_tuple(), strict=True)) == {**out}


def test_none_is_left_out():
    out = SpanOutput(jnp.ones(3), jnp.zeros(3))
    assert list(out) == ["start_logits", "end_logits"]
    assert out[0] is out.start_logits
    assert "loss" not in out
    assert out.get("loss") is out.loss is None
    for missing in ("loss", "hidden_states", "logits", "task"):
        with pytest.raises(KeyError, match=missing):
            out[missing]
    with pytest.raises(IndexError):
        out[2]


def test_unpacked_it_gives_names_as_in_transformers():
    from transformers.utils import ModelOutput

    @dataclasses.dataclass
    class SequenceClassifierOutput(ModelOutput):  # that of transformers imports torch
        loss: np.ndarray | None = None
        logits: np.ndarray | None = None

    ours = HeadOutput(jnp.ones(3), loss=jnp.zeros(()))
    theirs = SequenceClassifierOutput(loss=np.zeros(()), logits=np.ones(3))
    (a, b), (c, d) = ours, theirs
    assert (a, b) == (c, d) == ("loss", "logits")
    assert [x.shape for x in ours.values()] == [x.shape for x in theirs.values()]
    assert [x.shape for x in ours.to_tuple()] == [x.shape for x in theirs.to_tuple()]


def test_they_are_pytrees():
    out = HeadOutput(jnp.arange(6.0).reshape(3, 2), hidden_states=(jnp.ones(3),))
    doubled = jax.jit(lambda out: jax.tree.map(lambda x: 2 * x, out))(out)
    assert type(doubled) is HeadOutput
    assert list(doubled) == ["logits", "hidden_states"]
    np.testing.assert_array_equal(doubled["logits"], 2 * out[0])
    rows = jax.vmap(lambda row: EncoderOutput(row, pooler_output=row[0]))(out.logits)
    assert rows["pooler_output"].shape == (3,)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(out)]
    assert paths == [".logits", ".hidden_states[0]"]


# What a type checker says of each line.
TYPED = {
    "jaxllm.AutoModelForMaskedLM.from_pretrained('x')([[1]]).logits": "Array",
    "jaxllm.AutoModelForMaskedLM.from_config({}).apply({}, input_ids=[[1]])": "HeadOutput",
    "jaxllm.AutoModel.from_pretrained('x')([[1]]).pooler_output": "Array | None",
    "jaxllm.AutoModelForQuestionAnswering.from_pretrained('x')([[1]]).end_logits": "Array",
    "jaxllm.AutoModelForSequenceClassification.from_pretrained('x')([[1]]).loss": "Array | None",
    "jaxllm.AutoModelForPreTraining.from_pretrained('x')([[1]])": "PretrainingOutput | HeadOutput",
}


# Large packages that say nothing of these types.
SKIPPED = """
[mypy]
[mypy-flax.*,numpy.*,optax.*,orbax.*,safetensors.*,tokenizers.*,transformers.*]
follow_imports = skip
ignore_missing_imports = True
"""


def test_a_type_checker_sees_arrays(tmp_path):
    """In a program that imports the package, which has a py.typed."""
    lines = ["import jaxllm", *(f"reveal_type({line})" for line in TYPED)]
    (tmp_path / "program.py").write_text("\n".join(lines), "utf-8")
    (tmp_path / "mypy.ini").write_text(SKIPPED, "utf-8")
    command = [sys.executable, "-m", "mypy", "--no-incremental", "program.py"]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    revealed = re.findall('Revealed type is "(.*)"', done.stdout)
    assert [re.sub(r"\b[\w.]+\.", "", kind) for kind in revealed] == list(TYPED.values())


def test_the_marker_is_in_the_package_data():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["setuptools"]["package-data"]["jaxllm"] == ["py.typed"]
    assert (PACKAGE / "py.typed").is_file()
