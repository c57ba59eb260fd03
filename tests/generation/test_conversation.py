"""Turns of a conversation with a cache that is kept."""

import numpy as np
import pytest

import jaxllm
from jaxllm.errors import InputError
from jaxllm.generation.conversation import Conversation
from jaxllm.generation.options import options_of
from jaxllm.models import module_parts
from jaxllm.trees import map_params

V = 31


@pytest.fixture(scope="module")
def model():
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64, eos_token_id=None
    )
    rng = np.random.default_rng(5)
    abstract = module_parts(config, "causal-lm")[1]
    params = map_params(lambda path, x: 0.6 * rng.standard_normal(x.shape, np.float32), abstract)
    return jaxllm.AutoModelForCausalLM(config, params)


def talk(model, **given):
    options = options_of({"max_new_tokens": 12, **given}, {}, "", V)
    return Conversation(model.writer, options)


def said(conversation, ids):
    return [token for tokens in conversation.reply(ids) for token in tokens]


def alone(model, ids):
    return model.generate([ids], max_new_tokens=12)[0, len(ids) :].tolist()


def test_replies_are_those_of_a_model_that_reads_all_again(model):
    """Over three turns of which only new tokens are read; also where what was said is changed."""
    conversation = talk(model)
    ids = [3, 4, 5]
    for turn in ([7, 8], [9], [10, 11, 12]):
        reply = said(conversation, ids)
        assert reply == alone(model, ids)
        ids = ids + reply + turn
    assert said(conversation, ids[:20]) == alone(model, ids[:20])  # back to an earlier turn
    # 3; then a turn and the last token of the reply before it; one token for what stood there.
    assert conversation.read == 3 + 3 + 2 + 1


def test_a_conversation_longer_than_the_positions_is_an_error(model):
    conversation = talk(model)
    with pytest.raises(InputError, match=r"max_new_tokens: found 12 beside a prompt of 60 tokens"):
        said(conversation, [3] * 60)
    assert said(conversation, [3] * 53) == alone(model, [3] * 53)  # to the last position


def test_one_conversation_goes_on_in_one_way(model):
    with pytest.raises(InputError, match="num_beams, num_return_sequences"):
        talk(model, num_beams=2)
