"""Nothing imports PyTorch because it is installed; whoever wants it gets it, also later."""

import os
import subprocess
import sys
from types import ModuleType

import pytest
from checkpoints import GOLDEN

from jaxllm.runtime import no_torch

HIDDEN = """
import os
import sys
from jaxllm.runtime import no_torch

no_torch.hide()
import datasets
from transformers import CONFIG_MAPPING, AutoTokenizer

CONFIG_MAPPING["bert"]
print("torch" in sys.modules, "TRANSFORMERS_NO_ADVISORY_WARNINGS" in os.environ)
import torch

print(torch.here)
"""

# A program loads, runs and saves a model, then turns to transformers' classes of PyTorch.
PROGRAM = """
import sys
import jaxllm

model = jaxllm.AutoModel.from_pretrained(sys.argv[1])
model.save_pretrained("saved")
print("torch" in sys.modules)
from transformers.utils import is_torch_available, generic

print(is_torch_available())
import torch

print(torch.here)
from transformers import modeling_rope_utils

print(modeling_rope_utils.torch.Tensor is torch.Tensor)
print(generic.is_torch_tensor(torch.Tensor()))
"""


@pytest.fixture
def python(tmp_path):
    """Runs Python where a PyTorch is installed whose import is said."""
    metadata = tmp_path / "torch-2.13.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    code = "here = True\nprint('PyTorch')\nclass Tensor: pass\n"
    (tmp_path / "torch.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}

    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split(), done.stderr

    return run


def test_transformers_and_datasets_do_not_see_it(python):
    assert python("-c", HIDDEN) == (["False", "False", "PyTorch", "True"], "")


def test_a_program_gets_it_when_it_asks(python):
    out, err = python("-c", PROGRAM, GOLDEN / "torch_base")
    assert out == ["False", "True", "PyTorch", "True", "True", "True"]
    assert "PyTorch" not in err


def test_a_program_that_has_imported_it_keeps_it(monkeypatch):
    mine = ModuleType("torch")
    monkeypatch.setitem(sys.modules, "torch", mine)
    with no_torch.deferred():
        assert sys.modules["torch"] is mine
    assert sys.modules["torch"] is mine


def test_training_does_not_import_it(python, tmp_path, tiny_bert_dir):
    (tmp_path / "a.csv").write_text("text,label\nthe film was good,1\nthe book was bad,0\n")
    options = {"model.path": tiny_bert_dir, "data.train": "[a.csv]", "data.dev": "[a.csv]"}
    options |= {"data.cache_dir": "cache", "data.max_length": 16}
    options |= {"train.steps": 1, "run.dir": "run"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    out, err = python("-m", "jaxllm", "train", *words)
    assert "PyTorch" not in out
    assert "PyTorch" not in err
    assert list((tmp_path / "run" / "tensorboard").iterdir())
