"""A vocabulary of another size."""

import numpy as np
import pytest
from encoders import random_params, tiny_config, tiny_model

import jaxllm
from jaxllm.errors import InputError


def test_resized_vocabulary(rng):
    """Rows of old tokens stay, new ones are near the mean, and each differs; the call follows."""
    config = tiny_config("bert")
    ids = rng.integers(2, 99, (2, 10))
    model = jaxllm.AutoModelForMaskedLM(config, random_params(config, "masked-lm"))
    before = model(ids).logits
    old = model.params["embeddings"]["word"]["embedding"]
    model.resize_token_embeddings(120)
    table = model.params["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(table[:99], old)
    np.testing.assert_allclose(table[99:], np.tile(old.mean(0), (21, 1)), atol=1e-3)
    assert len(np.unique(table[99:], axis=0)) == 21
    assert not model.params["mlm"]["bias"][99:].any()
    assert (config.vocab_size, model.config.vocab_size) == (99, 120)
    out = model(ids).logits
    assert out.shape == (2, 10, 120)
    np.testing.assert_allclose(out[..., :99], before, rtol=1e-5, atol=1e-5)
    model(np.full((1, 2), 119))
    model.resize_token_embeddings(99)
    np.testing.assert_array_equal(model(ids).logits, before)
    with pytest.raises(InputError, match="input_ids: found 119, expected 0 to 98"):
        model(np.full((1, 2), 119))


def test_an_output_layer_of_its_own_is_resized_with_the_table(rng):
    model = tiny_model("llama", "causal-lm")
    model = jaxllm.AutoModelForCausalLM(model.config, model.params)
    ids, old = rng.integers(2, 99, (2, 10)), model.params["lm_head"]["kernel"]
    before = model(ids).logits
    model.resize_token_embeddings(104)
    kernel = model.params["lm_head"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :99], old)
    np.testing.assert_allclose(kernel[:, 99:], np.tile(old.mean(1)[:, None], (1, 5)), atol=1e-3)
    np.testing.assert_allclose(model(ids).logits[..., :99], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, -1, True, 3.0, None, "99"])
def test_sizes_of_a_vocabulary_that_are_none(size):
    with pytest.raises(InputError, match=r"^size: found .*, expected how many .*: len\(tokenizer"):
        tiny_model().resize_token_embeddings(size)
