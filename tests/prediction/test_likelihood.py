"""Log-likelihoods of continuations and of whole texts, beside a table that is counted by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jaxllm.errors import InputError
from jaxllm.nn.sharding import make_mesh, replicated
from jaxllm.prediction.likelihood import Judge, Judged, Rows, forward_of, windows

# A space joins the letter b behind it, as in most vocabularies; é is two bytes.
TOKENS = ["<s>", "</s>", "a", "b", "Ġ", "Ġb", "Ã", "©"]
V = len(TOKENS)
BEGIN, END, A, B, SPACE, SPACE_B, E1, E2 = range(V)


def tokenizer_of(opening=False):
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if opening:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


# The model: what comes next depends on the token before it alone.
TABLE = np.random.default_rng(0).normal(0, 2, (V, V)).astype(np.float32)
TABLE[A, B] = 9  # greedy decoding writes b behind a
LOG_P = TABLE.astype(np.float64)
LOG_P -= np.log(np.exp(LOG_P).sum(1, keepdims=True))


def follow(*tokens):
    """Log-probability of all but the first of `tokens`."""
    return sum(LOG_P[a, b] for a, b in itertools.pairwise(tokens))


def apply(params, *, input_ids, segment_ids, head_positions, judge):
    x_BPD = jax.nn.one_hot(jnp.take_along_axis(input_ids, head_positions, axis=1), V)
    return judge(lambda table, x: x @ table, params, x_BPD)


@pytest.fixture(scope="module")
def judge():
    shapes = []

    def traced(params, **inputs):
        # Once a compilation.
        shapes.append((inputs["input_ids"].shape, inputs["head_positions"].shape))
        return apply(params, **inputs)

    forward = forward_of(traced, V)

    def make(max_length=32, opening=False):
        rows = Rows(tokenizer_of(opening), max_length)
        return Judge(lambda batch: forward(TABLE, batch), rows, 2), shapes

    return make


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize(
    ("context", "continuation", "tokens"),
    [
        ("ab", "ab", (B, A, B)),
        ("ab", " b", (B, SPACE_B)),
        ("ab ", "b", (B, SPACE_B)),  # the space goes to the continuation
        ("ab  ", "b", (B, SPACE, SPACE_B)),
        ("", "aé", (BEGIN, A, E1, E2)),
        (" ", "b", (BEGIN, SPACE_B)),
        ("", "<s>ab", (BEGIN, A, B)),  # that token is not there twice
        ("<s>a", "b", (A, B)),
    ],
)
def test_the_tokens_of_a_continuation(judge, context, continuation, tokens, opening):
    [found] = judge(opening=opening)[0].loglikelihood([(context, continuation)])
    assert found.log_probability == pytest.approx(follow(*tokens), rel=1e-5)
    assert found.tokens == len(tokens) - 1
    likeliest = LOG_P.argmax(1)
    assert found.is_greedy == all(likeliest[a] == b for a, b in itertools.pairwise(tokens))


def test_greedy_is_what_greedy_decoding_writes(judge):
    pairs = [("a", "b"), ("a", "a"), ("a", "bb")]
    found = judge()[0].loglikelihood(pairs)
    assert [x.is_greedy for x in found] == [True, False, False]


def test_order_and_few_shapes_whatever_the_lengths(judge):
    one, shapes = judge()
    lengths = [(i % 17 + 1, i % 5 + 1) for i in range(60)]
    before = len(shapes)
    found = one.loglikelihood([("a" * n, "b" * m) for n, m in lengths])
    expected = [follow(A, *[B] * m) for _, m in lengths]
    np.testing.assert_allclose([x.log_probability for x in found], expected, rtol=1e-5)
    assert len(set(shapes[before:])) == len(shapes[before:]) <= 3


def test_rows_are_split_over_devices(judge):
    """Each device judges its own; every one has all the answers."""
    mesh = make_mesh(2, devices=jax.devices()[:2])
    forward = forward_of(apply, V, mesh)
    table = jax.device_put(TABLE, replicated(mesh))
    outputs = []

    def kept(batch):
        outputs.append(forward(table, batch))
        return outputs[-1]

    pairs = [("a", "b"), ("ab", "aé"), ("", "ba")]
    found = Judge(kept, Rows(tokenizer_of(), 32), 4).loglikelihood(pairs)
    expected = judge()[0].loglikelihood(pairs)
    np.testing.assert_allclose([x[0] for x in found], [x[0] for x in expected], rtol=1e-6)
    assert [x[1:] for x in found] == [x[1:] for x in expected]
    assert all(x.sharding.is_fully_replicated and len(x.devices()) == 2 for x in outputs[0])


def test_a_long_context_loses_its_beginning():
    seen = []

    def forward(batch):
        seen.append(batch)
        return np.zeros(2), np.ones(2, bool)

    judge = Judge(forward, Rows(tokenizer_of(), 4), 2)
    judge.loglikelihood([("aaab", "ab")])
    np.testing.assert_array_equal(seen[0]["input_ids"][0], [A, A, B, A])
    np.testing.assert_array_equal(seen[0]["segment_ids"], [[1] * 4, [0] * 4])
    np.testing.assert_array_equal(seen[0]["head_positions"][0, :2], [2, 3])
    np.testing.assert_array_equal(seen[0]["labels"][0, :2], [A, B])
    np.testing.assert_array_equal(seen[0]["label_weights"], [[1, 1, 0, 0], [0] * 4])


def test_windows_judge_each_token_once():
    """As the harness's `get_rolling_token_windows`, whose context_len is length - stride + 1."""
    assert windows([1, 2, 3], 0, 4, 4) == [Judged([0, 1, 2, 3], 3)]
    assert windows([1, 2, 3, 4, 5, 6], 0, 4, 4) == [
        Judged([0, 1, 2, 3, 4], 4),
        Judged([2, 3, 4, 5, 6], 2),
    ]
    assert windows([1, 2, 3, 4, 5, 6], 0, 4, 1) == [
        Judged([0, 1, 2, 3, 4], 4),
        Judged([1, 2, 3, 4, 5], 1),
        Judged([2, 3, 4, 5, 6], 1),
    ]
    assert windows([], 0, 4, 2) == []


@pytest.mark.parametrize("stride", [None, 1, 3])
def test_texts_are_judged_whole(judge, stride):
    texts = ["", "a", "aé b" * 5, "ab" * 16]
    found = judge(max_length=16, opening=True)[0].loglikelihood_rolling(texts, stride)
    assert [(x.tokens, x.bytes) for x in found] == [(0, 0), (1, 1), (20, 25), (32, 32)]
    tokens = [(), (A,), (A, E1, E2, SPACE_B) * 5, (A, B) * 16]
    expected = [follow(BEGIN, *ids) for ids in tokens]
    np.testing.assert_allclose([x.log_probability for x in found], expected, rtol=1e-5)
    assert found[2].perplexity == pytest.approx(math.exp(-expected[2] / 20), rel=1e-5)
    assert found[2].bits_per_byte == pytest.approx(-expected[2] / math.log(2) / 25, rel=1e-5)
    assert math.isnan(found[0].perplexity)
    assert math.isnan(found[0].bits_per_byte)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "b"), ("a", "")], r"pairs\[1\]: the continuation '' has no token"),
        (["ab c"], r"pairs\[0\]: found 'ab c', expected \(context, continuation\)"),
        ([("a", 3)], r"pairs\[0\]: found int, expected a text"),
        ([("a", "\ud83d")], r"pairs\[0\]: half a surrogate pair"),
        (
            [("a", "b" * 40)],
            r"pairs\[0\]: the continuation 'b+' has 40 tokens, expected at most 32",
        ),
    ],
)
def test_what_is_no_pair(judge, pairs, message):
    with pytest.raises(InputError, match=message):
        judge()[0].loglikelihood(pairs)


def test_what_is_no_text(judge):
    one, _ = judge()
    with pytest.raises(InputError, match=r"texts: found one text, expected a list"):
        one.loglikelihood_rolling("a")
    with pytest.raises(InputError, match=r"stride: found 33, expected 1 to 32"):
        one.loglikelihood_rolling(["a"], stride=33)
    with pytest.raises(InputError, match=r"stride: found 0, expected 1 to 32"):
        one.loglikelihood_rolling(["a"], stride=0)


def test_logits_that_are_no_numbers_are_an_error():
    broken = Judge(lambda batch: (np.full(2, np.nan), np.ones(2, bool)), Rows(tokenizer_of(), 8), 2)
    with pytest.raises(InputError, match="logits are NaN"):
        broken.loglikelihood([("a", "b")])
