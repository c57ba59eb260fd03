"""Generation on a tiny random model: the cache, draws, buckets, faults, tokens as they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxllm
from jaxllm.errors import InputError
from jaxllm.generation import decode
from jaxllm.models import module_parts
from jaxllm.trees import map_params

V = 31


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    rng = np.random.default_rng(3)
    abstract = module_parts(config, "causal-lm")[1]
    params = map_params(lambda path, x: 0.6 * rng.standard_normal(x.shape, np.float32), abstract)
    return jaxllm.AutoModelForCausalLM(config, params)


PROMPTS = [[5, 9, 4, 7, 11], [12, 3], [6, 20, 8]]


def test_tokens_with_a_cache_are_those_of_the_whole_forward_pass(model):
    """Token by token, of prompts of three lengths, without and with padding beside them."""
    found = model.generate(PROMPTS, max_new_tokens=20, eos_token_id=None)
    for row, prompt in zip(found, PROMPTS, strict=True):
        ids = np.zeros((1, 25), np.int32)
        ids[0, : len(prompt)] = prompt
        for n in range(len(prompt), len(prompt) + 20):
            ids[0, n] = np.argmax(model(ids).logits[0, n - 1])  # a token sees none behind it
            count = min(20, 25 - len(prompt))
        assert row[5 : 5 + count].tolist() == ids[0, len(prompt) :][:count].tolist()


def test_a_bucket_is_compiled_once(model):
    """Of other lengths, other ends, other numbers of a processor."""
    counts = decode.start._cache_size(), decode.advance._cache_size()

    def compiled():
        return decode.start._cache_size() - counts[0], decode.advance._cache_size() - counts[1]

    sampled = {"do_sample": True, "top_k": 0}
    model.generate([[3, 4, 5], [6, 7]], max_new_tokens=9, temperature=0.5, top_p=0.9, **sampled)
    assert compiled() == (1, 1)
    model.generate([[3], [6]], max_new_tokens=16, temperature=0.7, top_p=0.5, **sampled, seed=9)
    model.generate(
        [[3] * 16, [6]],
        max_length=20,
        temperature=2,
        top_p=0.1,
        **sampled,
        eos_token_id=[7, 9],
        pad_token_id=4,
    )
    assert compiled() == (1, 1)
    model.generate([[3] * 17, [6]], max_new_tokens=16, temperature=2, top_p=0.1, **sampled)
    assert compiled() == (2, 2)


@pytest.mark.slow
def test_draws_follow_the_distribution(model):
    """The first token of 4,000 continuations, by counts, against the probabilities of the model."""
    drawn = model.generate(
        [[5, 9, 4]],
        max_new_tokens=1,
        do_sample=True,
        top_k=0,
        temperature=3.0,
        num_return_sequences=4000,
    )[:, 3]
    p = np.asarray(jax.nn.softmax(model(np.array([[5, 9, 4]])).logits[0, -1] / 3.0))
    counts = np.bincount(drawn, minlength=V)
    deviation = np.sqrt(4000 * p * (1 - p))
    assert (np.abs(counts - 4000 * p) < 4.5 * deviation + 1).all()
    assert np.count_nonzero(counts) > 10
    few = model.generate(
        [[5, 9, 4]], max_new_tokens=1, do_sample=True, top_k=3, temperature=3.0,
        num_return_sequences=4000,
    )[:, 3]  # fmt: skip
    assert set(few) == set(np.argsort(p)[-3:])


def test_draws_of_a_row_depend_on_the_seed_and_its_number_alone(model):
    sampled = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "eos_token_id": None}
    three = model.generate(PROMPTS, **sampled, seed=4)
    np.testing.assert_array_equal(model.generate(PROMPTS, **sampled, seed=4), three)
    assert (model.generate(PROMPTS, **sampled, seed=5)[:, 5:] != three[:, 5:]).any(1).all()
    others = model.generate([PROMPTS[0], [1] * 9, [2]], **sampled, seed=4)
    np.testing.assert_array_equal(others[0, 9:], three[0, 5:])
    alone = model.generate(PROMPTS[:1], **sampled, seed=4)
    np.testing.assert_array_equal(alone, three[:1])
    several = model.generate(PROMPTS, **sampled, seed=4, num_return_sequences=2)
    np.testing.assert_array_equal(several[::2], three)
    assert (several[1::2] != three).any(1).all()
    same = model.generate([[5, 9]] * 3, **sampled, seed=4)
    assert (same[0] != same[1]).any()


class Watcher:
    def __init__(self):
        self.put_, self.ended = [], 0

    def put(self, tokens):
        self.put_.append(tokens.tolist())

    def end(self):
        self.ended += 1


def test_tokens_that_are_watched_are_those_that_come_out(model):
    options = {"max_new_tokens": 20, "do_sample": True, "seed": 1, "eos_token_id": [3, 4, 9, 14]}
    whole, watcher = model.generate(PROMPTS, **options), Watcher()
    np.testing.assert_array_equal(model.generate(PROMPTS, **options, streamer=watcher), whole)
    prompts, *steps = watcher.put_
    assert prompts == whole[:, :5].tolist()
    assert np.transpose(steps).tolist() == whole[:, 5:].tolist()
    assert watcher.ended == 1
    assert len(steps) > 9  # more than one part of the loop


def test_a_row_whose_logits_are_not_numbers_is_an_error(model):
    """Also a NaN with the sign that `lax.top_k` puts last."""
    for sign in (1, -1):
        word = np.array(model.params["embeddings"]["word"]["embedding"])
        word[20] = np.copysign(np.nan, sign)
        params = {**model.params, "embeddings": {"word": {"embedding": jnp.asarray(word)}}}
        broken = jaxllm.AutoModelForCausalLM(model.config, params)
        for options in ({}, {"do_sample": True}, {"do_sample": True, "top_k": 1}):
            with pytest.raises(InputError, match=r"row 0: the model's logits are NaN"):
                broken.generate([[5, 9]], max_new_tokens=1, **options)


def test_options_that_forbid_every_token_are_an_error(model):
    with pytest.raises(InputError, match=r"row 0: the options forbid every token"):
        model.generate([[5, 9]], max_new_tokens=1, suppress_tokens=list(range(V)))


def test_stop_strings_need_a_tokenizer(model):
    with pytest.raises(InputError, match=r"stop_strings: found .* without a tokenizer"):
        model.generate([[5]], stop_strings=["x"])


def test_other_parameters_count(model):
    """What was cut out of the old ones is not used again."""
    other = jaxllm.AutoModelForCausalLM(model.config, model.params)
    first = other.generate(PROMPTS, max_new_tokens=20)
    other.params = jax.tree.map(lambda x: x[..., ::-1], model.params)
    assert (other.generate(PROMPTS, max_new_tokens=20)[:, :9] != first[:, :9]).any()
