"""Attention without scores in memory, in float32: dropout, its masks, meshes, and lowering.

The kernels of Triton run in Pallas' interpreter here.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from jaxllm import AutoModelForMaskedLM
from jaxllm.attention import blocked, triton
from jaxllm.attention.backends import make_attend
from jaxllm.attention.blocks import Dropping, block_ranges, kept_weights
from jaxllm.attention.triton_kernels import Static
from jaxllm.attention.visibility import Visibility
from jaxllm.nn.layers import key_words
from jaxllm.nn.sharding import make_mesh

B, T, N, H = 2, 192, 2, 16
STATIC = Static(N, 0.1)
KEY = jax.random.key(7)


@pytest.fixture
def interpreted(monkeypatch):
    call = partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(triton, "pl", SimpleNamespace(**vars(pl) | {"pallas_call": call}))


def segments():
    ids = np.ones((B, T), np.int32)
    ids[0, 70:] = 2
    ids[0, 180:] = 0
    ids[1, 64:128] = 2
    ids[1, 128:] = 3
    return jnp.asarray(ids)


def dropping(key=KEY):
    numbers = (jnp.arange(n, dtype=jnp.int32) for n in (B, N))
    return Dropping(jnp.stack(key_words(key)), *numbers)


def kept(key=KEY, rate=0.1):
    """bool [B, N, T, T]."""
    tokens = jnp.arange(B * N * T, dtype=jnp.uint32)
    places = jnp.arange(T, dtype=jnp.int32)
    return kept_weights(*key_words(key), tokens, places, rate).reshape(B, N, T, T)


def plain(q, k, v, mask, keep):
    """The definition, weights in memory."""
    highest = partial(jnp.einsum, precision="highest")
    scores = highest("BTNH,BSNH->BNTS", q, k) / H**0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    weights = jnp.where(keep, weights / (1 - STATIC.rate), 0.0)
    return highest("BNTS,BSNH->BTNH", weights, v)


def window(radius):
    return None if radius is None else (radius, radius)


def by_triton(q, k, v, ids, radius):
    seen = block_ranges(ids, ids, False, window(radius), (64, 64))
    return triton.flash_attention(STATIC, q, k, v, seen, dropping())


def in_blocks(q, k, v, ids, radius):
    seen = block_ranges(ids, ids, False, window(radius), (96, 48))
    static = blocked.Static(N, 0.1, (96, 48))
    return blocked.blocked_attention(static, q, k, v, seen, dropping())


@pytest.mark.parametrize("radius", [None, 30])
@pytest.mark.parametrize("attention", [by_triton, in_blocks])
def test_dropout_within_segments_and_windows_is_the_definition(attention, radius, interpreted):
    rng = np.random.default_rng(0)
    q, k, v, g = (jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32) for _ in range(4))
    ids = segments()
    place = jnp.arange(T)
    near = jnp.abs(place[:, None] - place[None]) <= (T if radius is None else radius)
    mask = ((ids[:, :, None] == ids[:, None, :]) & near[None])[:, None]

    def ours(q, k, v):
        return attention(q, k, v, ids, radius)

    expected, expected_vjp = jax.vjp(lambda *x: plain(*x, mask, kept()), q, k, v)
    out, vjp = jax.vjp(jax.jit(ours), q, k, v)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for grad, wanted in zip(vjp(g), expected_vjp(g), strict=True):
        np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=2e-5)


def test_blocks_that_nobody_sees_are_not_computed():
    seen = block_ranges(segments(), segments(), False, None, (64, 64))
    assert seen.keys_BX2[1].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert seen.queries_BY2[0].tolist() == [[0, 2], [0, 3], [1, 3]]
    hidden = block_ranges(
        jnp.ones((1, 64), jnp.int32), jnp.zeros((1, 64), jnp.int32), False, None, (64, 32)
    )
    assert hidden.keys_BX2.tolist() == [[[0, 0]]]
    assert hidden.queries_BY2.tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("length", "blocks"),
    [(512, (512, 128)), (384, (384, 128)), (1024, (512, 128)), (320, (320, 80)), (768, (384, 128)),
     (128, (128, 128)), (127, None), (80, None), (509, None), (134, (134, 67))],
)  # fmt: skip
def test_blocks_divide_the_row(length, blocks):
    assert blocked.blocks_of(length) == blocks


def test_dropped_weights_are_a_tenth_everywhere_and_unrelated():
    mask = np.asarray(kept())
    assert abs(mask.mean() - 0.9) < 2e-3
    for axes in ((0, 1, 2), (0, 1, 3)):  # of each key, of each query
        share = mask.mean(axes)
        assert abs(share - 0.9).max() < 5 * (0.09 / (mask.size / T)) ** 0.5
    flat = mask - 0.9
    noise = 5 * 0.09 / mask.size**0.5
    others = [np.asarray(kept(jax.random.key(8))) - 0.9]
    others += [np.roll(flat, 1, axis) for axis in range(4)]
    others += [np.roll(flat, (1, shift), (2, 3)) for shift in (-1, 1, 2)]
    for other in others:
        assert abs((flat * other).mean()) < noise
    assert (kept() == kept()).all()


@pytest.mark.parametrize(("name", "length"), [("triton", 64), ("blocked", 192)])
def test_masks_do_not_depend_on_the_mesh(name, length, interpreted):
    rng = np.random.default_rng(1)
    x = [jnp.asarray(rng.normal(size=(4, length, N, H)), jnp.bfloat16) for _ in range(3)]
    ids = jnp.asarray(np.repeat([[1, 2]], length // 2, axis=1).repeat(4, axis=0), jnp.int32)

    def attended(x, ids):
        def total(x):
            attend = make_attend(name, Visibility.of_rows(length, None, ids))
            out = attend(*x, dropout_rate=0.1, key=KEY)[0].astype(jnp.float32)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

        grads, out = jax.grad(total, has_aux=True)(x)
        return jnp.stack([out, *(grad.astype(jnp.float32) for grad in grads)])

    expected = jax.jit(attended)(x, ids)
    mesh = make_mesh(2, 1, 2, devices=jax.devices()[:4])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), jax.set_mesh(mesh):
        out = jax.jit(attended)(x, ids)
    np.testing.assert_allclose(out, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"), [("triton", "bfloat16", 3e-2), ("blocked", "float32", 2e-5)]
)
def test_a_model_by_it_is_the_model(name, dtype, tolerance, model_type, interpreted):
    from transformers import CONFIG_MAPPING

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    more = {"local_attention": 16} if model_type == "modernbert" else {}
    config = CONFIG_MAPPING[model_type](
        vocab_size=99, num_hidden_layers=3, pad_token_id=0, **sizes, **more
    )
    load = partial(AutoModelForMaskedLM.from_config, config, dtype=dtype)
    xla, fused = load(), load(attention=name)
    ids = np.random.default_rng(2).integers(5, 99, (B, T))
    expected = np.asarray(xla(ids, segment_ids=segments()).logits, np.float32)
    out = fused(ids, segment_ids=segments(), params=xla.params).logits
    keep = np.asarray(segments()) > 0
    np.testing.assert_allclose(np.asarray(out, np.float32)[keep], expected[keep], atol=tolerance)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="needs an NVIDIA GPU: this jax asks it what it is"
)
@pytest.mark.parametrize(
    ("masked", "radius", "rate"), [(False, None, 0.0), (True, None, 0.1), (True, 30, 0.0)]
)
def test_the_kernels_are_lowered_by_triton(masked, radius, rate):
    def total(q, k, v, ids):
        seen = block_ranges(ids, ids, False, window(radius), (64, 64)) if masked else None
        static, drop = Static(N, rate), dropping() if rate else None
        return triton.flash_attention(static, q, k, v, seen, drop).astype(float).sum()

    x = jax.ShapeDtypeStruct((B, T, N, H), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(x, x, x, ids)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("forward_kernel", "keys_kernel", "queries_kernel"):
        assert f'"{name}"' in text
