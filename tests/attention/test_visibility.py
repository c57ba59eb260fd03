"""Who sees whom, pair by pair, and what attention makes of it: the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.attention.backends import make_attend
from jaxllm.attention.visibility import Visibility
from jaxllm.errors import InputError

B, T, S, N, H = 2, 6, 9, 4, 8
SEGMENTS = jnp.asarray([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2]])
PADDING = jnp.asarray([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]])


def rows(seen, length=T):
    """The mask as strings, a query a line."""
    mask = np.broadcast_to(seen.mask(), (B, 1, seen.queries, seen.keys))[:, 0]
    return ["".join(".x"[int(x)] for x in query) for query in mask[0]]


def test_packed_causal_rows():
    seen = Visibility.of_rows(T, None, SEGMENTS, causal=True)
    assert rows(seen) == ["x.....", "xx....", "..x...", "..xx..", "..xxx.", ".....x"]


def test_a_window_of_three_sees_three_tokens():
    """Two before its own and its own, as Mistral's sliding_window 3."""
    seen = Visibility(5, 5, causal=True, window=(2, 2))
    assert rows(seen) == ["x....", "xx...", "xxx..", ".xxx.", "..xxx"]
    everywhere = seen.of_layer(jnp.asarray(True))
    assert rows(everywhere) == ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]
    assert rows(seen.of_layer(jnp.asarray(False))) == rows(seen)


def test_a_window_may_have_two_sides():
    assert rows(Visibility(4, 4, window=(0, 2))) == ["xxx.", ".xxx", "..xx", "...x"]


def test_a_cache_offsets_the_places_of_queries():
    """One query goes on behind five keys, in a cache of nine."""
    seen = Visibility(1, 9, causal=True, q_places_BT=jnp.asarray([[5]]))
    assert rows(seen) == ["xxxxxx..."]


def test_a_prefix_sees_itself_and_the_rest_is_causal():
    """Keys of the prefix have the place of its first token, so every query is behind them."""
    places = jnp.asarray([[0, 0, 0, 3, 4]])
    seen = Visibility(5, 5, causal=True, k_places_BS=places)
    assert rows(seen) == ["xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"]


def test_cross_attention_sees_the_text_of_its_id():
    seen = Visibility(
        3, 5, q_ids_BT=jnp.asarray([[1, 2, 2]]), k_ids_BS=jnp.asarray([[1, 1, 2, -1, 2]])
    )
    assert rows(seen) == ["xx...", "..x.x", "..x.x"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_some_queries_see_what_they_see_among_all(causal, padding, segments):
    seen = Visibility.of_rows(T, padding, segments, causal=causal, window=(2, 1))
    places = jnp.asarray([[3, 0], [5, 5]])
    whole = np.broadcast_to(seen.mask(), (B, 1, T, T))
    expected = np.take_along_axis(whole, np.asarray(places)[:, None, :, None], 2)
    few = seen.at(places)
    np.testing.assert_array_equal(np.broadcast_to(few.mask(), expected.shape), expected)
    again = few.at(jnp.asarray([[1], [0]]))
    np.testing.assert_array_equal(
        np.broadcast_to(again.mask(), (B, 1, 1, T))[:, 0, 0],
        [expected[0, 0, 1], expected[1, 0, 0]],
    )


@pytest.mark.parametrize("name", ["xla", "blocked"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_grouped_heads_and_a_bias_are_the_definition(name, heads, rng):
    q = rng.normal(size=(B, T, N, H))
    k, v = (rng.normal(size=(B, S, heads, H)) for _ in range(2))
    bias = rng.normal(size=(1, N, T, S))
    ids = rng.integers(1, 3, (B, S))
    scores = np.einsum("btnh,bsnh->bnts", q, k.repeat(N // heads, 2)) / H**0.5 + bias
    scores = np.where(ids[:, None, None] == 1, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, v.repeat(N // heads, 2))
    seen = Visibility(T, S, k_ids_BS=jnp.asarray(ids), bias_BNTS=jnp.asarray(bias, jnp.float32))
    out, _ = make_attend(name, seen)(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    few = jnp.asarray([[4, 1], [0, 5]])
    chosen = jnp.take_along_axis(jnp.asarray(q, jnp.float32), few[..., None, None], 1)
    out, _ = make_attend(name, seen).at(few)(chosen, *(jnp.asarray(x, jnp.float32) for x in (k, v)))
    expected = np.take_along_axis(expected, np.asarray(few)[..., None, None], 1)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["splash", "triton"])
@pytest.mark.parametrize(
    "seen",
    [
        Visibility(128, 256),
        Visibility(128, 128, q_places_BT=jnp.zeros((1, 128), jnp.int32)),
        Visibility(128, 128, bias_BNTS=jnp.zeros((1, 1, 128, 128))),
    ],
    ids=["cross", "places", "bias"],
)
def test_what_a_kernel_cannot_honour_is_refused(name, seen):
    message = f"model.attention: {name} attends from whole rows to themselves, without a bias"
    with pytest.raises(InputError, match=message):
        make_attend(name, seen)


def test_a_function_computes_attention(rng):
    """And is told what queries see; one that gives another shape is refused."""
    x = jnp.asarray(rng.normal(size=(1, T, 2, H)), jnp.float32)
    k = x[:, :, :1]
    seen = Visibility.of_rows(T, causal=True)

    def mine(q, k, v, visibility, *, dropout_rate, key):
        assert (k.shape, dropout_rate, key) == (q.shape, 0.0, None)
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / H**0.5
        weights = jnp.where(visibility.mask(), jnp.exp(scores), 0)
        return jnp.einsum("BNTS,BSNH->BTNH", weights / weights.sum(-1, keepdims=True), v)

    expected, _ = make_attend("xla", seen)(x, k, k)
    out, weights = make_attend(mine, seen)(x, k, k)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert weights is None

    def wrong(q, *rest, **options):
        return q[:, :1]

    message = r"attention: wrong gave an array \(1, 1, 2, 8\), expected an array \(1, 6, 2, 8\)"
    with pytest.raises(InputError, match=message):
        make_attend(wrong, seen)(x, k, k)
    with pytest.raises(InputError, match="attention: <lambda> gave NoneType"):
        make_attend(lambda *x, **y: None, seen)(x, k, k)
    for kind in ("int32", "bool", "complex64"):
        message = rf"gave an array \(1, 6, 2, 8\) of {kind}, expected .* of float32"
        with pytest.raises(InputError, match=message):
            make_attend(lambda q, *x, kind=kind, **y: q.astype(kind), seen)(x, k, k)
    with pytest.raises(InputError, match="gave ShapeDtypeStruct, expected an array"):
        make_attend(lambda q, *x, **y: jax.ShapeDtypeStruct(q.shape, q.dtype), seen)(x, k, k)
    out, _ = make_attend(lambda q, *x, **y: np.ones(q.shape), seen)(x, k, k)
    assert out.dtype == x.dtype
    with pytest.raises(InputError, match="mine attention has no weights"):
        make_attend(mine, seen, weights=True)
