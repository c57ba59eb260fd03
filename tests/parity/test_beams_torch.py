"""Beam search against transformers' `generate` on tiny random models: tokens equal, one by one."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
import transformers

import jaxllm

V = 24
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # no near ties, and more than one likely token
}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**SIZES),
    "llama": lambda: transformers.LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Steps this small take 20 times as long where two threads of a busy machine share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """name -> (our model, PyTorch's) with the same random parameters."""

    @cache
    def make(name):
        torch.manual_seed(2)
        theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        directory = tmp_path_factory.mktemp(name)
        theirs.save_pretrained(directory)
        return jaxllm.AutoModelForCausalLM.from_pretrained(directory), theirs

    return make


def prompts():
    """(ids, mask) of random rows, padded on the left."""
    ids = np.random.default_rng(0).integers(3, V, (3, 6))
    mask = np.arange(6) >= np.array([0, 3, 1])[:, None]
    return np.where(mask, ids, 0), mask.astype(np.int64)


def both(models, ids, mask, **options):
    """(our output, transformers')."""
    ours, theirs = models
    options |= {"return_dict_in_generate": True, "output_scores": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **options
        )
    return ours.generate(ids, mask, **options), expected


def check(found, expected):
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(
        found.sequences_scores, expected.sequences_scores, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(found.beam_indices, expected.beam_indices)


ENDS = {"max_new_tokens": 14, "eos_token_id": [3, 17], "pad_token_id": 23}


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_penalty_and_early_stopping_act_as_in_transformers(pair, length_penalty, early_stopping):
    found, expected = both(
        pair("gpt2"),
        *prompts(),
        **ENDS,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    check(found, expected)
    assert len(found.scores) == len(expected.scores)  # it stops as early


SETTINGS = {
    "two beams, one end": {"num_beams": 2, "eos_token_id": 17},
    "two beams, no end": {"num_beams": 2, "eos_token_id": None},
    "five beams, three ends": {
        "num_beams": 5,
        "num_return_sequences": 2,
        "eos_token_id": [3, 17, 9],
        "length_penalty": 0.0,
    },
    # Behind an end stands EOS, the first one, where without beams pad does.
    "pad is 0": {"pad_token_id": 0, "num_return_sequences": 3},
    "no pad": {"pad_token_id": None, "num_return_sequences": 3},
    "total length": {"max_new_tokens": None, "max_length": 9},
    "processed": {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "suppress_tokens": [8],
        "forced_eos_token_id": 17,
        "num_return_sequences": 3,
    },
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_gives_the_beams_of_transformers(pair, setting):
    found, expected = both(
        pair("gpt2"), *prompts(), **{**ENDS, "num_beams": 3, **SETTINGS[setting]}
    )
    check(found, expected)


def test_grouped_heads_and_rotary_positions_follow_their_beams(pair):
    """And the scores and logits of each step, of all rows of the cache."""
    found, expected = both(
        pair("llama"), *prompts(), **ENDS, num_beams=3, length_penalty=2.0, output_logits=True
    )
    check(found, expected)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(expected[name])
        for ours_RV, theirs_RV in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(ours_RV, theirs_RV, rtol=1e-4, atol=1e-4)
