"""Adapters beside peft: each loads what the other wrote, with the same outputs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from encoders import random_inputs, tiny_config
from test_encoders_torch import OURS, TOLERANCE, outputs_of, random_torch, to_torch

from jaxllm import models
from jaxllm.adapters.stored import DIRECTORY, LoraModel
from jaxllm.config.fields import LoraConfig
from jaxllm.models import FAMILIES, Compute
from jaxllm.nn.sharding import make_mesh, place
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import OneModel
from jaxllm.trees import leaf_at, map_params

# peft 0.21 asks transformers 5.24 for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
T = 12
TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "base": "FEATURE_EXTRACTION",
    "causal-lm": "CAUSAL_LM",
}


@functools.cache
def base_of(family, task, root):
    """The directory of a random model of PyTorch."""
    directory = root / f"{family}-{task}"
    random_torch(family, task).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return lambda family, task: base_of(family, task, root)


def load_torch(family, task, directory):
    """PyTorch's model, which is told the labels, as a user has to where a base has no head."""
    config = tiny_config(family, task)
    cls = getattr(transformers, FAMILIES[family].table.architecture(task))
    labels = {"num_labels": config.num_labels}
    return cls.from_pretrained(directory, **labels, attn_implementation="eager").eval()


def compare(out, model, inputs):
    # Not through peft's class of a task: PeftModelForQuestionAnswering drops token_type_ids.
    with torch.no_grad():
        expected = model.base_model(**to_torch(inputs))
    ours = outputs_of(out)
    assert set(ours) <= set(expected)
    for name, x in ours.items():
        np.testing.assert_allclose(x, expected[name], **TOLERANCE, err_msg=name)


THEIRS = {
    "defaults": ("bert", "sequence-classification", {}),
    "every-layer": (
        *("bert", "token-classification"),
        {
            "target_modules": ["query", "output.dense", "intermediate.dense", "word_embeddings"],
            "rank_pattern": {r"layer\.1\.attention\.self\.query": 2},
            "alpha_pattern": {"intermediate.dense": 5, r"1\.output\.dense": 7},
        },
    ),
    "rslora": (
        *("distilbert", "sequence-classification"),
        {"use_rslora": True, "target_modules": ["q_lin", "lin2"]},
    ),
    "one-layer": (
        *("bert", "question-answering"),
        {"target_modules": ["value"], "layers_to_transform": [1]},
    ),
    "fused": ("modernbert", "token-classification", {"target_modules": ["Wqkv", "Wi", "Wo"]}),
    "no-head": ("electra", "base", {"target_modules": ["key", "embeddings_project"]}),
    "gpt2": ("gpt2", "causal-lm", {"fan_in_fan_out": True}),
    "gpt2-every-layer": (
        *("gpt2", "sequence-classification"),
        {"target_modules": ["c_attn", "c_proj", "c_fc", "wpe"], "fan_in_fan_out": True},
    ),
    "llama": ("llama", "causal-lm", {}),
    "llama-every-layer": (
        "llama",
        "question-answering",
        {"target_modules": ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]},
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_of_peft_gives_its_outputs(name, base, tmp_path, rng):
    family, task, options = THEIRS[name]
    directory = base(family, task)
    settings = peft.LoraConfig(task_type=TYPES[task], r=4, lora_alpha=12, **options)
    model = peft.get_peft_model(load_torch(family, task, directory), settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # adapters and the head that is trained whole
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    inputs = random_inputs(family, task, T, rng)
    ours = OURS[task].from_pretrained(directory, adapter=tmp_path)
    compare(ours(**inputs), model, inputs)
    plain = OURS[task].from_pretrained(directory)
    (first, *_), (other, *_) = (outputs_of(m(**inputs)).values() for m in (ours, plain))
    assert np.abs(first - other).max() > 0.01


OUR = {
    "defaults": ("bert", "sequence-classification", LoraConfig().targets),
    "every-layer": ("bert", "token-classification", ["blocks/*", "embeddings/*"]),
    "ambiguous-names": ("bert", "question-answering", ["blocks/mlp/down"]),
    "fused": ("modernbert", "sequence-classification", [*LoraConfig().targets, "blocks/mlp/*"]),
    "roberta": ("roberta", "sequence-classification", ["blocks/attention/*"]),
    "distilbert": ("distilbert", "sequence-classification", ["blocks/*"]),
    "no-head": ("electra", "base", ["blocks/attention/output", "embeddings/project"]),
    "gpt2": ("gpt2", "causal-lm", LoraConfig().targets),
    "gpt2-every-layer": ("gpt2", "sequence-classification", ["blocks/*", "embeddings/*"]),
    "llama": ("llama", "causal-lm", ["blocks/*"]),
    "llama-spans": ("llama", "question-answering", LoraConfig().targets),
}


@pytest.mark.parametrize("name", OUR)
def test_peft_loads_an_adapter_of_ours(name, base, tmp_path, rng):
    family, task, targets = OUR[name]
    spec = LoraConfig(rank=3, alpha=6.0, targets=targets)
    config = hf.load_config(base(family, task))
    model = LoraModel(OneModel(task, config), spec, str(base(family, task)))
    graph, abstract = model.parts(Compute())
    placed = place(make_mesh(devices=jax.devices()[:1]), abstract)
    params = model.load(
        base(family, task), placed, lambda path: jnp.zeros(leaf_at(abstract, path).shape)
    )
    params = map_params(
        lambda path, x: x + 0.2 * rng.standard_normal(x.shape, np.float32) * model.trains(path),
        params,
    )
    model.save(tmp_path / "model", params, None)

    about = json.loads((tmp_path / "model" / DIRECTORY / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(base(family, task))
    theirs = peft.PeftModel.from_pretrained(
        load_torch(family, task, base(family, task)), tmp_path / "model" / DIRECTORY
    ).eval()
    inputs = random_inputs(family, task, T, rng)
    compare(models.apply_fn(graph)(params, **inputs), theirs, inputs)
    merged = load_torch(family, task, tmp_path / "model")
    with torch.no_grad():
        first, second = (m(**to_torch(inputs))[0] for m in (merged, theirs.base_model))
    np.testing.assert_allclose(first, second, **TOLERANCE)
    again = OURS[task].from_pretrained(base(family, task), adapter=tmp_path / "model" / DIRECTORY)
    compare(again(**inputs), theirs, inputs)
