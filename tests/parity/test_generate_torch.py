"""`generate` against transformers' on tiny random models: tokens equal, one by one."""

import tempfile
import warnings
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models

import jaxllm
from jaxllm.generation.stop_strings import StopStrings

V = 61
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.4,  # no near ties
}
CAUSAL = {"intermediate_size": 48, "is_decoder": True}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**SIZES),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=12),
    "bert": lambda: transformers.BertConfig(**SIZES, **CAUSAL),
    "dynamic": lambda: transformers.LlamaConfig(
        **{**GROUPED, "max_position_embeddings": 16}, **rope(rope_type="dynamic", factor=2.0)
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Steps this small take 20 times as long where two threads of a busy machine share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def pair(name):
    """(our model, PyTorch's) with the same random parameters."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # norms and biases are not what they begin as
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.2)
    ours = jaxllm.AutoModelForCausalLM.from_config(theirs.config)
    return with_weights(ours, theirs), theirs


def with_weights(ours, theirs):
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        ours.params = jaxllm.AutoModelForCausalLM.from_pretrained(directory).params
    return ours


def prompts(seed=0, rows=3, length=7):
    """(ids, mask) of random rows, padded on the left."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, V, (rows, length))
    mask = np.arange(length) >= np.array([0, 3, 5, 1])[:rows, None]
    return np.where(mask, ids, 0), mask.astype(np.int64)


def both(name, ids, mask=None, **options):
    """(our sequences, transformers')."""
    ours, theirs = pair(name)
    masks = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs.generate(torch.from_numpy(ids), **masks, **options)
    return ours.generate(ids, mask, **options), expected


QUICK = ("gpt2", "llama", "dynamic", "ends", "processed", "default length")


def cases(names):
    """Most of them are for the long run: each compiles a program."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(CONFIGS))
def test_greedy_tokens_are_those_of_transformers(name):
    """Of rows padded on the left; past the original length where rotary positions depend on it."""
    found, expected = both(name, *prompts(), max_new_tokens=20, eos_token_id=None)
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row[7:]) for row in found}) == 3


SETTINGS = {
    "default length": {},
    "ends": {"max_new_tokens": 20, "eos_token_id": [9, 38, 51, 17, 44]},
    "ends with pad": {"max_length": 25, "eos_token_id": [9, 38, 51], "pad_token_id": 3},
    "ends without pad": {"max_new_tokens": 20, "eos_token_id": [38, 9], "pad_token_id": None},
    "processed": {
        "max_new_tokens": 20,
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[7], [38, 9], [2]],
        "suppress_tokens": [5, 11],
        "begin_suppress_tokens": [9, 51, 17],
        "min_new_tokens": 6,
        "eos_token_id": [44, 38, 9, 20, 30],
        "forced_eos_token_id": 44,
    },
    "no end before a length": {"max_length": 25, "min_length": 14, "eos_token_id": [9, 38, 51, 17]},
    "repetition": {"max_new_tokens": 20, "repetition_penalty": 0.6},
    "n-grams": {"max_new_tokens": 20, "no_repeat_ngram_size": 1},
}


@pytest.mark.parametrize("setting", cases(SETTINGS))
def test_each_setting_gives_the_tokens_of_transformers(setting):
    found, expected = both("gpt2", *prompts(), **SETTINGS[setting])
    np.testing.assert_array_equal(found, expected)


def test_padding_is_found_by_its_id_also_inside_of_a_prompt():
    ids, _ = prompts()
    ids[0, 3] = 0
    found, expected = both("gpt2", ids, max_new_tokens=18)
    np.testing.assert_array_equal(found, expected)
    whole = both("gpt2", ids, np.ones_like(ids), max_new_tokens=18)[0]
    assert (found != whole).any()


def test_padding_that_is_the_end_too_is_no_padding():
    ids, _ = prompts()
    found, expected = both("gpt2", ids, max_new_tokens=18, pad_token_id=0, eos_token_id=[5, 0])
    np.testing.assert_array_equal(found, expected)
    whole = both("gpt2", ids, np.ones_like(ids), max_new_tokens=18, eos_token_id=[5, 0])[0]
    np.testing.assert_array_equal(found, whole)


def test_a_forced_first_token_follows_one_token():
    found, expected = both(
        "gpt2",
        np.array([[1], [4]]),
        max_new_tokens=20,
        forced_bos_token_id=33,
        begin_suppress_tokens=[9, 38],
    )
    np.testing.assert_array_equal(found, expected)
    assert (found[:, 1] == 33).all()


def test_scores_and_log_probabilities_are_those_of_transformers():
    ours, theirs = pair("llama")
    ids, mask = prompts()
    options = {
        "max_new_tokens": 20,
        "eos_token_id": [9, 38, 51, 17, 44, 20],
        "repetition_penalty": 1.3,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    found = ours.generate(ids, mask, **options)
    expected = theirs.generate(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **options
    )
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(expected[name])
        for ours_RV, theirs_RV in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(ours_RV, theirs_RV, rtol=1e-4, atol=1e-4)
    transitions = theirs.compute_transition_scores(
        expected.sequences, expected.scores, normalize_logits=True
    )
    ended = np.cumsum(np.isin(found.sequences[:, 7:], options["eos_token_id"]), 1)
    lives = np.pad(ended, ((0, 0), (1, 0)))[:, :-1] == 0
    np.testing.assert_allclose(
        found.log_probabilities, np.where(lives, transitions, 0), rtol=1e-4, atol=1e-4
    )


# token -> what it spells: parts of a character and of the strings, and strings within a token
PIECES = ["<pad>", "a", "b", "ab", "ba", "bab", "Ġ", "Ġa", "c", "Ã", "©", "Ã©", "abc", "cab", "Ċ"]


def byte_level_tokenizer():
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    backend = Tokenizer(models.BPE(vocabulary | {c: 15 + i for i, c in enumerate("def")}, []))
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def word_piece_tokenizer():
    words = ["[UNK]", *"abcdef", *("##" + c for c in "abcdef"), "ab", "##ab", "abcdef"]
    backend = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.decoder = decoders.WordPiece()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def byte_fallback_tokenizer():
    words = ["<unk>", *(f"<0x{i:02X}>" for i in (97, 98, 99, 195, 169)), *"abcdef", "▁", "▁ab", "é"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    "make", [byte_level_tokenizer, word_piece_tokenizer, byte_fallback_tokenizer]
)
def test_stop_strings_are_found_where_transformers_finds_them(make):
    tokenizer = make()
    rng = np.random.default_rng(0)
    known = len(tokenizer)
    ids = rng.integers(0, known, (400, 6)).astype(np.int32)
    for strings in (["b"], ["abab", "bab"], ["cab a", "é", "aba"], ["ab", "b a"]):
        theirs = transformers.generation.StopStringCriteria(tokenizer, strings)
        ours = StopStrings.of(strings, tokenizer, known + 3)
        for length in (1, 3, 6):
            expected = theirs(torch.from_numpy(ids[:, :length]).long(), None).numpy()
            np.testing.assert_array_equal(np.asarray(ours(ids, length)), expected)
        assert expected.any()
        assert not expected.all()


def test_a_row_ends_with_a_stop_string_as_in_transformers():
    tokenizer = byte_level_tokenizer()
    stops = {"stop_strings": ["ab", "é"], "tokenizer": tokenizer, "max_new_tokens": 20}
    ids, mask = prompts()
    allowed = {"suppress_tokens": list(range(len(tokenizer), V)), "no_repeat_ngram_size": 2}
    for eos in ([2], None):
        found, expected = both("gpt2", ids, mask, **stops, **allowed, eos_token_id=eos)
        np.testing.assert_array_equal(found, expected)
    assert 8 < found.shape[1] < 27
