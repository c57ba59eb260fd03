"""Each processor of logits against the one of transformers, and all together in its order."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import logits_process as theirs
from transformers.generation.utils import GenerationMixin

from jaxllm.generation.options import options_of
from jaxllm.generation.processors import Processors

V, R, P, S = 23, 4, 6, 16
EOS = [2, 5]


def case(seed: int, length: int):
    """(ids of which `length` columns are filled, tokens of left padding, logits)."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 9, (R, S)).astype(np.int32)  # few tokens, so that much repeats
    padding = np.array([0, 2, 0, 4])
    ids[np.arange(S) < padding[:, None]] = 0
    ids[:, length:] = 22  # what no processor may see
    return ids, padding, 3 * rng.standard_normal((R, V)).astype(np.float32)


def ours(options: dict, seed: int, length: int, **sizes) -> np.ndarray:
    ids, padding, logits = case(seed, length)
    sizes = {"prompt_length": P, "min_length": 0, "max_length": S} | sizes
    made = options_of({"eos_token_id": EOS, **options}, {}, "", V)
    processors = Processors.of(made, vocabulary=V, ignored_R=padding, **sizes)
    run = jax.jit(lambda p, ids, length, logits: p(ids, length, logits))
    return np.asarray(run(processors, ids, length, logits))


SAMPLED = {"do_sample": True, "top_k": 0}
# What makes the list of processors asks of a model.
MODEL = SimpleNamespace(
    config=SimpleNamespace(is_encoder_decoder=False),
    _merge_criteria_processor_list=lambda made, given: made,
)
EOS_IDS = torch.tensor(EOS)
# name -> (options, transformers' processor, lengths)
TABLE = {
    "repetition": (
        {"repetition_penalty": 1.7},
        lambda: theirs.RepetitionPenaltyLogitsProcessor(1.7, torch.tensor([0, 2, 0, 4])),
        (P, 11),
    ),
    "ngram-1": ({"no_repeat_ngram_size": 1}, lambda: theirs.NoRepeatNGramLogitsProcessor(1), (7,)),
    "ngram-2": (
        {"no_repeat_ngram_size": 2},
        lambda: theirs.NoRepeatNGramLogitsProcessor(2),
        (1, 2, P, 15),
    ),
    "ngram-3": (
        {"no_repeat_ngram_size": 3},
        lambda: theirs.NoRepeatNGramLogitsProcessor(3),
        (2, 3, P, 16),
    ),
    "ngram-long": (
        {"no_repeat_ngram_size": 17},
        lambda: theirs.NoRepeatNGramLogitsProcessor(17),
        (16,),
    ),
    "bad-words": (
        {"bad_words_ids": [[7], [2], [3, 4], [4, 3], [8, 8, 1], [5, 6], [2, 2], [7]]},
        lambda: theirs.NoBadWordsLogitsProcessor(
            [[7], [2], [3, 4], [4, 3], [8, 8, 1], [5, 6], [2, 2]], EOS_IDS
        ),
        (1, P, 11),
    ),
    "suppress": (
        {"suppress_tokens": [1, 22]},
        lambda: theirs.SuppressTokensLogitsProcessor([1, 22]),
        (P,),
    ),
    "begin-suppress": (
        {"begin_suppress_tokens": [1, 22]},
        lambda: theirs.SuppressTokensAtBeginLogitsProcessor([1, 22], P),
        (P, P + 1),
    ),
    "forced-bos": (
        {"forced_bos_token_id": 3},
        lambda: theirs.ForcedBOSTokenLogitsProcessor(3),
        (1, 2),
    ),
    "forced-eos": (
        {"forced_eos_token_id": [2, 5]},
        lambda: theirs.ForcedEOSTokenLogitsProcessor(S, [2, 5]),
        (S - 2, S - 1),
    ),
    "temperature": (
        {**SAMPLED, "temperature": 0.3},
        lambda: theirs.TemperatureLogitsWarper(0.3),
        (P,),
    ),
    "top-k": ({**SAMPLED, "top_k": 5}, lambda: theirs.TopKLogitsWarper(5), (P,)),
    "top-k-all": ({**SAMPLED, "top_k": 99}, lambda: theirs.TopKLogitsWarper(99), (P,)),
    "top-p": ({**SAMPLED, "top_p": 0.8}, lambda: theirs.TopPLogitsWarper(0.8), (P,)),
    "top-p-least": ({**SAMPLED, "top_p": 1e-4}, lambda: theirs.TopPLogitsWarper(1e-4), (P,)),
    "top-p-beams": (
        {**SAMPLED, "top_p": 1e-4, "num_beams": 2},
        lambda: theirs.TopPLogitsWarper(1e-4, min_tokens_to_keep=3),
        (P,),
    ),
    "min-p": ({**SAMPLED, "min_p": 0.2}, lambda: theirs.MinPLogitsWarper(0.2), (P,)),
    "min-p-beams": (
        {**SAMPLED, "min_p": 1.0, "num_beams": 2},
        lambda: theirs.MinPLogitsWarper(1.0, min_tokens_to_keep=3),
        (P,),
    ),
    "typical": ({**SAMPLED, "typical_p": 0.6}, lambda: theirs.TypicalLogitsWarper(0.6), (P,)),
    "typical-beams": (
        {**SAMPLED, "typical_p": 0.05, "num_beams": 2},
        lambda: theirs.TypicalLogitsWarper(0.05, min_tokens_to_keep=3),
        (P,),
    ),
    "epsilon": (
        {**SAMPLED, "epsilon_cutoff": 0.05},
        lambda: theirs.EpsilonLogitsWarper(0.05),
        (P,),
    ),
    "eta": ({**SAMPLED, "eta_cutoff": 0.1}, lambda: theirs.EtaLogitsWarper(0.1), (P,)),
    "normalized": ({"renormalize_logits": True}, theirs.LogitNormalization, (P,)),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_processor_gives_the_scores_of_transformers(name):
    options, make, lengths = TABLE[name]
    changed = False
    for length in lengths:
        ids, _, logits = case(length, length)
        found = ours(options, length, length)
        expected = make()(torch.from_numpy(ids[:, :length]).long(), torch.from_numpy(logits))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)
        changed |= not np.array_equal(found, logits)
    assert changed or name in ("ngram-long", "top-k-all")


def test_no_end_comes_before_the_least_length():
    for length in (8, 9):
        ids, _, logits = case(0, length)
        expected = theirs.MinLengthLogitsProcessor(9, EOS_IDS)(
            torch.from_numpy(ids[:, :length]).long(), torch.from_numpy(logits)
        )
        np.testing.assert_array_equal(ours({}, 0, length, min_length=9), expected.numpy())
    assert np.isneginf(ours({}, 0, 8, min_length=9)[:, EOS]).all()


def test_the_first_token_that_is_suppressed_follows_a_forced_one():
    one = {"begin_suppress_tokens": [4], "forced_bos_token_id": 4}
    assert ours(one, 0, 1, prompt_length=1)[0, 4] == 0
    assert np.isneginf(ours(one, 0, 2, prompt_length=1)[:, 4]).all()


def test_the_order_is_that_of_transformers():
    """Repetition before n-grams, temperature before what it changes."""
    options = {
        "repetition_penalty": 2.5,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[9], [3, 4]],
        "suppress_tokens": [11],
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 15,
        "top_p": 0.9,
        "min_p": 0.02,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.01,
        "eta_cutoff": 0.02,
        "renormalize_logits": True,
    }
    config = GenerationConfig(**options, eos_token_id=EOS)
    config._eos_token_tensor = EOS_IDS
    for seed in range(8):
        ids, padding, logits = case(seed, 11)
        mask = torch.from_numpy((np.arange(11) >= padding[:, None]).astype(np.int64))
        chain = GenerationMixin._get_logits_processor(
            MODEL, config, P, model_kwargs={"attention_mask": mask}
        )
        expected = chain(torch.from_numpy(ids[:, :11]).long(), torch.from_numpy(logits))
        np.testing.assert_allclose(ours(options, seed, 11), expected.numpy(), rtol=1e-5, atol=1e-5)
