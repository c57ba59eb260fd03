"""Decoders beside PyTorch's: padding on either side, groups of heads, kinds of rotary positions,
windows, and the cache, which goes on as PyTorch's does.
"""

import inspect

import numpy as np
import pytest
import torch
import transformers
from encoders import DECODERS, tiny_config

import jaxllm
from jaxllm import models

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = [*DECODERS, "bert", "roberta", "electra"]
T, PROMPT = 12, 7
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0},  # of max_position_embeddings tokens, 0.1 ln(4) + 1 times as large
    "yarn of its own": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4,
        "beta_fast": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 6,
    },
    "longrope": {
        "short_factor": [1.0, 1.2, 1.4, 2.0],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 8,
    },
}


def pair(config, tmp_path):
    """(ours, theirs) of one random causal LM, every scale and bias away from its first value."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    name = models.family_of(config).table.architecture("causal-lm")
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    return jaxllm.AutoModelForCausalLM.from_pretrained(tmp_path), theirs


def rope_config(name):
    """Eight positions, so that the rows of twelve tokens are longer than the pretraining's."""
    rope = {"rope_type": name, "rope_theta": 100.0, **ROPES[name]}
    return tiny_config("llama", max_position_embeddings=8, rope_parameters=rope)


def rows(config, rng):
    """ids, a mask with padding on the left of one row and on the right of the other, positions."""
    ids = rng.integers(2, 99, (2, T)).astype(np.int32)
    mask = np.ones((2, T), np.int32)
    mask[0, :3], mask[1, -2:] = 0, 0
    ids[mask == 0] = config.pad_token_id
    return ids, mask, np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)


def check_whole(config, tmp_path, rng):
    """Our logits are PyTorch's, on every token that is not padding."""
    ours, theirs = pair(config, tmp_path)
    ids, mask, _ = rows(config, rng)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).logits
    logits = ours(input_ids=ids, attention_mask=mask).logits
    seen = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(logits)[seen], expected.numpy()[seen], **TOLERANCE)
    return ours, theirs


def check_cached(ours, theirs, rng):
    """A prompt at once and then token by token, as PyTorch does with its cache."""
    ids, mask, positions = rows(ours.config, rng)
    mask[:], positions[:] = 1, np.arange(T)
    mask[0, :3], positions[0] = 0, np.maximum(np.arange(T) - 3, 0)
    if ours.config.model_type == "roberta":
        positions = positions + 2
    graph, _ = models.module_parts(ours.config, "causal-lm")
    apply, cache = models.apply_fn(graph), graph.merge(ours.params).stack.empty_cache(2, T + 3)
    of_torch = transformers.DynamicCache()
    known = inspect.signature(theirs.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"  # before transformers 5.2x
    begin = 0
    for end in (PROMPT, *range(PROMPT + 1, T + 1)):
        here = slice(begin, end)
        inputs = {"input_ids": ids[:, here], "position_ids": positions[:, here]}
        out = apply(ours.params, **inputs, attention_mask=mask[:, here], cache=cache)
        with torch.no_grad():
            expected = theirs(
                **{key: torch.tensor(x).long() for key, x in inputs.items()},
                attention_mask=torch.tensor(mask[:, :end]).long(),
                use_cache=True,
                **{name: of_torch},
            ).logits.numpy()
        cache, begin, seen = out.cache, end, mask[:, here].astype(bool)
        np.testing.assert_allclose(np.asarray(out.logits)[seen], expected[seen], **TOLERANCE)
    assert int(cache.length) == T


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_cache(family, tmp_path, rng):
    check_cached(*check_whole(tiny_config(family, "causal-lm"), tmp_path, rng), rng)


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions(name, tmp_path, rng):
    check_cached(*check_whole(rope_config(name), tmp_path, rng), rng)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_groups_of_heads(kv_heads, tmp_path, rng):
    config = tiny_config("llama", num_key_value_heads=kv_heads)
    check_cached(*check_whole(config, tmp_path, rng), rng)


def test_old_names_of_rotary_positions(tmp_path):
    """rope_theta and rope_scaling, as configs before transformers 5 have them."""
    old = tiny_config("llama").to_dict()
    del old["rope_parameters"]
    old |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config = jaxllm.AutoModelForCausalLM.from_config(old).config
    rope = models.FAMILIES["llama"].spec(config).rope
    assert (rope.theta, rope.kind, rope.factor) == (500.0, "linear", 2.0)


def test_files_of_gpt2_before_prefixes(tmp_path, rng):
    """The Hub's gpt2 has no prefix, holds masks as buffers and no lm_head."""
    from safetensors.numpy import load_file, save_file

    config = tiny_config("gpt2", "causal-lm")
    ours, _ = pair(config, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    old = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    old |= {f"h.{i}.attn.bias": np.ones((1, 1, 24, 24), np.float32) for i in range(2)}
    old |= {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(2)}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = jaxllm.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = rows(config, rng)[0]
    np.testing.assert_array_equal(again(ids).logits, ours(ids).logits)
