"""Layers and attention on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllm.attention.scores import dot_product_attention
from jaxllm.attention.visibility import Visibility, segment_positions
from jaxllm.nn.layers import Dense, LayerNorm, dropout, random_bits
from jaxllm.nn.rotary import rotary_table, rotate


def test_dense_contracts_several_axes(rng):
    dense = Dense((4, 8), (32,), stddev=0.5, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=0))
    x = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
    expected = np.einsum("btnh,nhd->btd", x, np.asarray(dense.kernel[...])) + np.asarray(
        dense.bias[...]
    )
    np.testing.assert_allclose(dense(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_takes_statistics_in_float32():
    x = (
        1000 + jnp.arange(64, dtype=jnp.float32).reshape(1, 64) / 64
    )  # one-pass variance would cancel
    norm = LayerNorm(64, eps=1e-12, dtype=jnp.dtype("bfloat16"))
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(y.astype(jnp.float32).std()), 1.0, rtol=5e-3)


def test_dropout_keeps_the_mean_and_the_rate():
    x = jnp.ones((256, 1024))
    y = dropout(x, 0.1, jax.random.key(3))
    np.testing.assert_allclose(float((y == 0).mean()), 0.1, atol=0.002)
    np.testing.assert_allclose(float(y.mean()), 1.0, atol=0.002)
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_random_bits_are_uniform_and_keys_unrelated():
    """Every bit is fair; streams of neighbouring keys agree by chance only, at any shift."""
    shape = (64, 4096)
    streams = [np.asarray(random_bits(jax.random.key(i), shape)).reshape(-1) for i in range(3)]
    for stream in streams:
        bits = np.unpackbits(stream.view(np.uint8)).reshape(-1, 32).mean(0)
        np.testing.assert_allclose(bits, 0.5, atol=0.006)
        assert len(np.unique(stream)) > 0.9999 * stream.size
    signs = [(s >> 31).astype(np.float64) * 2 - 1 for s in streams]
    for shift in (0, 1, 7, 4096):
        for other in (signs[1], signs[2]):
            assert abs(np.mean(signs[0] * np.roll(other, shift))) < 0.01
        if shift:
            assert abs(np.mean(signs[0] * np.roll(signs[0], shift))) < 0.01


def test_random_bits_accept_raw_and_typed_keys():
    typed = jax.random.key(5)
    np.testing.assert_array_equal(
        random_bits(typed, (8, 8)), random_bits(jax.random.key_data(typed), (8, 8))
    )


def test_attention_is_block_diagonal_over_segments(rng):
    """A gradient proves it: no output of one segment depends on another's values."""
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0]])
    q, k, v = (jnp.asarray(rng.normal(size=(1, 6, 2, 4)).astype(np.float32)) for _ in range(3))
    mask = Visibility.of_rows(6, None, segments).mask()

    def first_segment(v):
        return dot_product_attention(q, k, v, mask=mask)[0][:, :2].sum()

    reached = np.abs(jax.grad(first_segment)(v)).sum((0, 2, 3)) > 0
    assert reached.tolist() == [True, True, False, False, False, False]


def test_padded_keys_are_hidden_and_a_row_of_padding_is_finite(rng):
    padding = jnp.asarray([[1, 1, 0], [0, 0, 0]])
    q, k, v = (jnp.asarray(rng.normal(size=(2, 3, 1, 4)).astype(np.float32)) for _ in range(3))
    out, weights = dot_product_attention(q, k, v, mask=Visibility.of_rows(3, padding).mask())
    np.testing.assert_array_equal(weights[0, :, :, 2], 0.0)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    assert np.isfinite(out).all()


def test_attention_dropout_drops_weights_not_outputs(rng):
    q, k, v = (jnp.asarray(rng.normal(size=(1, 8, 2, 4)).astype(np.float32)) for _ in range(3))
    _, plain = dot_product_attention(q, k, v, mask=None)
    out, dropped = dot_product_attention(
        q, k, v, mask=None, dropout_rate=0.5, key=jax.random.key(0)
    )
    kept = np.asarray(dropped) != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(dropped[kept], 2 * np.asarray(plain)[kept], rtol=1e-6)
    np.testing.assert_allclose(out, jnp.einsum("BNTS,BSNH->BTNH", dropped, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_gradient_uses_the_same_mask(rate):
    x = jnp.ones((16, 16))
    key = jax.random.key(1)
    y, pull = jax.vjp(lambda x: dropout(x, rate, key), x)
    np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], y)


def test_rotary_products_depend_on_distance_alone(rng):
    """And a token at position 0 is left as it is; the first pair turns by one radian a token."""
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 2, 8)).astype(np.float32)) for _ in range(2))

    def at(x, position):
        return rotate(x, rotary_table(jnp.asarray([[position]]), 8, 100.0))

    np.testing.assert_array_equal(at(q, 0), q)
    near, far = (jnp.einsum("BTNH,BTNH->N", at(q, 5 + p), at(k, 2 + p)) for p in (0, 40))
    np.testing.assert_allclose(near, far, rtol=1e-4, atol=1e-5)
    assert not np.allclose(near, jnp.einsum("BTNH,BTNH->N", at(q, 6), at(k, 2)), atol=1e-3)
    first, second = q[..., 0], q[..., 4]
    np.testing.assert_allclose(
        at(q, 3)[..., 0], first * np.cos(3) - second * np.sin(3), rtol=1e-5, atol=1e-6
    )
    assert at(q.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16


def test_segment_positions_restart():
    segments = jnp.asarray([[1, 1, 1, 2, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    expected = [[0, 1, 2, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(segment_positions(segments), expected)


def test_window_counts_both_sides():
    window = np.asarray(Visibility(5, 5, window=(1, 1)).mask())
    assert window.shape == (1, 1, 5, 5)
    np.testing.assert_array_equal(window[0, 0], np.tri(5, k=1) * np.tri(5, k=1).T)
