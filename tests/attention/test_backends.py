"""Attention by cuDNN, Triton and splash beside a plain definition: every kind of mask and refusal.

splash and Triton's kernels run in Pallas' interpreter here, cuDNN's masks are checked through XLA;
on a GPU cuDNN and Triton themselves run, and for a TPU splash compiles where libtpu is installed.
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu import splash_attention

from jaxllm import AutoModel
from jaxllm.attention import blocked, triton
from jaxllm.attention.backends import make_attend
from jaxllm.attention.visibility import Visibility
from jaxllm.config.fields import ModelConfig
from jaxllm.errors import InputError
from jaxllm.models.compute import computation
from jaxllm.nn.sharding import make_mesh

B, T, N, H = 2, 256, 2, 16
RADIUS = 40


def segments():
    ids = np.zeros((B, T), np.int32)
    for row, ends in enumerate([(70, 130, 250), (128, 129, 256)]):
        for start, end, number in zip((0, *ends), ends, (1, 2, 3), strict=False):
            ids[row, start:end] = number
    return ids


def padding():
    mask = np.ones((B, T), np.int32)
    mask[0, 200:] = 0
    mask[1, :30] = 0  # on the left, too
    return mask


MASKS = {
    "nothing": {},
    "padding": {"padding": padding()},
    "segments": {"segments": segments()},
    "padding in segments": {"padding": padding(), "segments": segments()},
    "window": {"radius": RADIUS},
    "window in segments": {"radius": RADIUS, "segments": segments()},
    "window, but global": {"radius": RADIUS, "segments": segments(), "is_global": True},
    "window, and local": {"radius": RADIUS, "padding": padding(), "is_global": False},
    "causal in segments": {"causal": True, "segments": segments()},
    "causal window, but global": {
        "causal": True,
        "radius": RADIUS,
        "segments": segments(),
        "is_global": True,
    },
}


def visible(padding=None, segments=None, radius=None, causal=False, **_):
    """The `Visibility` of one of MASKS."""
    parts = (None if x is None else jnp.asarray(x) for x in (padding, segments))
    window = None if radius is None else (radius, radius)
    return Visibility.of_rows(T, *parts, causal=causal, window=window)


def plain(q, k, v, padding=None, segments=None, radius=None, is_global=False, causal=False):
    """The definition, in float64, a query at a time."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        seen = np.ones(T, bool)
        if padding is not None:
            seen &= padding[b] != 0
        if segments is not None:
            seen &= segments[b] == segments[b, t]
        if radius is not None and not is_global:
            seen &= np.abs(np.arange(T) - t) <= radius
        if causal:
            seen &= np.arange(T) <= t
        if seen.any():
            scores = k[b, seen, n] @ q[b, t, n] / np.sqrt(H)
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, seen, n] / weights.sum()
    return out


def real(padding=None, segments=None, **_):
    """bool [B, T]: queries whose answer means something."""
    ids = np.ones((B, T), np.int32) if segments is None else segments
    return (ids > 0) & (np.ones((B, T), bool) if padding is None else padding != 0)


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, T, N, H)).astype(np.float32) for _ in range(3)]


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels in Pallas' interpreter: there is no TPU, and no GPU."""
    make = splash_attention.make_splash_mha
    monkeypatch.setattr(splash_attention, "make_splash_mha", partial(make, interpret=True))
    call = partial(triton.pl.pallas_call, interpret=True)
    monkeypatch.setattr(triton, "pl", SimpleNamespace(**vars(pl) | {"pallas_call": call}))


@pytest.fixture
def through_xla(monkeypatch):
    """cuDNN's calls are computed by XLA."""
    attention = jax.nn.dot_product_attention

    def call(*arrays, mask, implementation, bias=None):
        assert implementation == "cudnn"
        assert all(x is None or x.shape[2:] == (T, T) for x in (mask, bias))
        assert bias is None or np.isfinite(np.asarray(bias, np.float32)).all()
        return attention(*arrays, mask=mask, bias=bias, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", call)


def run(name, arrays, kind, dtype=jnp.float32):
    """(out, gradients of a weighted sum of the real queries' outputs)."""
    given = MASKS[kind]
    flag = given.get("is_global")
    weights = np.random.default_rng(1).normal(size=(B, T, N, H)) * real(**given)[..., None, None]

    def total(q, k, v):
        attend = make_attend(name, visible(**given))
        is_global = None if flag is None else jnp.asarray(flag)
        out, _ = attend(q, k, v, is_global=is_global)
        return jnp.sum(out * weights.astype(np.float32)), out

    arrays = [jnp.asarray(x, dtype) for x in arrays]
    grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return np.asarray(out, np.float32), [np.asarray(g, np.float32) for g in grads]


def to_device(x):
    return None if x is None else jnp.asarray(x)


@pytest.mark.parametrize("kind", MASKS)
def test_xla_is_the_definition(qkv, kind):
    out, _ = run("xla", qkv, kind)
    keep = real(**MASKS[kind])
    np.testing.assert_allclose(out[keep], plain(*qkv, **MASKS[kind])[keep], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MASKS)
def test_blocked_is_xla(qkv, kind, monkeypatch):
    monkeypatch.setattr(blocked, "QUERIES", 128)
    monkeypatch.setattr(blocked, "KEYS", 64)
    same("blocked", qkv, kind, jnp.float32, 1e-5)


@pytest.mark.parametrize("kind", MASKS)
def test_a_row_in_one_block_is_in_blocks_where_no_gradient_is_asked_for(qkv, kind, monkeypatch):
    monkeypatch.setattr(blocked, "KEYS", T)
    expected, expected_grads = run("xla", qkv, kind)
    flag = to_device(MASKS[kind].get("is_global"))
    arrays = [jnp.asarray(x) for x in qkv]

    def forward(*arrays, **dropout):
        attend = make_attend("blocked", visible(**MASKS[kind]))
        return attend(*arrays, is_global=flag, **dropout)[0]

    keep = real(**MASKS[kind])
    np.testing.assert_allclose(forward(*arrays)[keep], expected[keep], rtol=1e-5, atol=1e-5)
    scores = f"f32[{B},{N},{T},{T}]"
    assert scores not in str(jax.make_jaxpr(forward)(*arrays))
    dropping = partial(forward, dropout_rate=0.1, key=jax.random.key(0))
    assert scores in str(jax.make_jaxpr(dropping)(*arrays))

    out, grads = run("blocked", qkv, kind)
    np.testing.assert_array_equal(out, expected)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_array_equal(grad, wanted)


@pytest.mark.parametrize("kind", MASKS)
def test_splash_is_xla(qkv, kind, interpreted):
    same("splash", qkv, kind, jnp.float32, 1e-5)


@pytest.mark.parametrize("kind", MASKS)
def test_triton_is_xla(qkv, kind, interpreted):
    same("triton", qkv, kind, jnp.bfloat16, 3e-2)


@pytest.mark.parametrize("kind", MASKS)
def test_cudnn_is_given_the_mask(qkv, kind, through_xla):
    same("cudnn", qkv, kind, jnp.bfloat16, 3e-2)


# [B, T, S] and [B, N, T, S], and what of them is 1
QUERY_MASKS = {
    "of queries": (B, T, T),
    "of keys": (1, 1, T),
    "of heads": (1, N, T, T),
    "of all": (B, N, T, T),
    "of heads and keys": (B, N, 1, T),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", QUERY_MASKS)
def test_masks_of_queries_and_heads(qkv, kind, dtype, through_xla):
    """Bool, int and additive ones are one mask, without a window; blocked and cuDNN honour it."""
    rng = np.random.default_rng(3)
    mask = rng.random(QUERY_MASKS[kind]) < 0.5
    mask[..., :1] = True
    whole = np.broadcast_to(mask if mask.ndim == 4 else mask[:, None], (B, N, T, T))
    q, k, v = qkv
    scores = np.where(whole, np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    additive = np.where(mask, 0, -np.inf)
    for same in (mask, mask.astype(np.int32), additive.astype(np.float32)):
        seen = Visibility.of_rows(T, jnp.asarray(same), causal=True, window=(1, 1))
        for name in ("xla", "blocked"):
            out, _ = make_attend(name, seen)(*(jnp.asarray(x) for x in qkv))
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    out, _ = make_attend("cudnn", seen)(*(jnp.asarray(x, dtype) for x in qkv))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=3e-2, atol=3e-2)
    for name in ("triton", "splash"):
        with pytest.raises(InputError, match=f"{name} attends from whole rows to themselves"):
            make_attend(name, seen)


def test_a_query_that_sees_no_key_gives_no_nan():
    q = jnp.ones((1, 4, 1, 8), jnp.float16)
    v = q * jnp.arange(4, dtype=jnp.float16)[None, :, None, None]
    for hidden in (jnp.zeros((1, 4, 4), bool), jnp.full((1, 4, 4), -jnp.inf)):
        out, _ = make_attend("xla", Visibility.of_rows(4, hidden))(q, q, v)
        np.testing.assert_array_equal(out, 1.5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", ["cudnn", "triton"])
def test_on_a_gpu_it_is_xla(qkv, name, kind):
    same(name, qkv, kind, jnp.bfloat16, 3e-2)


def same(name, qkv, kind, dtype, tolerance):
    rounded = [np.asarray(jnp.asarray(x, dtype), np.float32) for x in qkv]
    expected, expected_grads = run("xla", rounded, kind)
    out, grads = run(name, qkv, kind, dtype)
    keep = real(**MASKS[kind])
    np.testing.assert_allclose(out[keep], expected[keep], rtol=tolerance, atol=tolerance)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(grad / scale, wanted / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["xla", "blocked", "splash", "cudnn", "triton"])
def test_chosen_queries_get_the_same_answers(qkv, name, interpreted):
    q, k, v = map(jnp.asarray, qkv)
    seen = visible(segments=segments(), radius=RADIUS)
    places = jnp.asarray([[0, 69, 70, 249], [5, 127, 128, 255]])
    whole, _ = make_attend("xla", seen)(q, k, v)
    chosen = jnp.take_along_axis(q, places[..., None, None], 1)
    few, _ = make_attend(name, seen).at(places)(chosen, k, v)
    np.testing.assert_allclose(
        few, jnp.take_along_axis(whole, places[..., None, None], 1), rtol=1e-5, atol=1e-6
    )


def test_splash_over_a_mesh_is_splash(qkv, interpreted):
    expected, _ = run("splash", qkv, "window in segments")
    mesh = make_mesh(2, 1, 2, devices=jax.devices()[:4])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), jax.set_mesh(mesh):
        out, _ = run("splash", qkv, "window in segments")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "bert", "attention_probs_dropout_prob": 0.0},
        {"model_type": "modernbert", "local_attention": 16, "num_hidden_layers": 3},
    ],
    ids=["bert", "modernbert"],
)
def test_a_model_by_splash_is_the_model(shape, interpreted):
    from transformers import CONFIG_MAPPING

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    rest = {"vocab_size": 99, "num_hidden_layers": 2, "pad_token_id": 0}
    config = CONFIG_MAPPING[shape["model_type"]](**{**rest, **sizes, **shape})
    xla = AutoModel.from_config(config)
    fused = AutoModel.from_config(config, attention="splash")
    ids = np.random.default_rng(2).integers(5, 99, (2, T))
    inputs = {"segment_ids": segments()}
    expected = np.asarray(xla(ids, **inputs).last_hidden_state)
    out = np.asarray(fused(ids, **inputs, params=xla.params).last_hidden_state)
    keep = segments() > 0
    np.testing.assert_allclose(out[keep], expected[keep], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_dropout_of_weights_is_refused(qkv, name):
    attend = make_attend(name, visible())
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    with pytest.raises(InputError, match=rf"{name} cannot drop attention weights.* 0\.1 of them"):
        attend(*arrays, dropout_rate=0.1, key=jax.random.key(0))


@pytest.mark.parametrize("name", ["blocked", "splash", "cudnn", "triton"])
def test_weights_are_refused(name):
    with pytest.raises(InputError, match=f"{name} attention has no weights to give"):
        make_attend(name, visible(), weights=True)


def test_rows_without_blocks_are_xlas_and_unknown_names_refused(qkv):
    q, k, v = (jnp.asarray(x)[:, :64] for x in qkv)
    (out, weights), (expected, kept) = (
        make_attend(name, Visibility(64, 64), weights=True)(q, k, v) for name in ("blocked", "xla")
    )
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(weights, kept)
    with pytest.raises(InputError, match="attention: found 'auto', expected one of xla, blocked"):
        make_attend("auto", Visibility(64, 64))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("cudnn", (1, 8, 1, 8), jnp.float32, "does not compute in float32"),
        ("cudnn", (1, 8, 1, 12), jnp.bfloat16, "at most 128, found 12; set"),
        ("cudnn", (1, 8, 1, 136), jnp.bfloat16, "at most 128, found 136; set"),
        ("cudnn", (1, 9, 1, 8), jnp.bfloat16, "even number of tokens, found 9"),
        ("splash", (1, 192, 1, 8), jnp.float32, "multiple of 128 tokens, found 192"),
        ("triton", (1, 64, 1, 16), jnp.float32, "does not compute in float32"),
        ("triton", (1, 64, 1, 24), jnp.bfloat16, "16, 32, 64 or 128, found 24"),
        ("triton", (1, 96, 1, 16), jnp.bfloat16, "multiple of 64 tokens, found 96"),
    ],
)
def test_shapes_that_are_refused(name, shape, dtype, message):
    x = jnp.zeros(shape, dtype)
    with pytest.raises(InputError, match=message):
        make_attend(name, Visibility(shape[1], shape[1]))(x, x, x)


@pytest.mark.parametrize(("name", "kind"), [("cudnn", "GPU"), ("triton", "GPU"), ("splash", "TPU")])
def test_another_kind_of_device_is_refused(name, kind):
    def mesh(platform):
        return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))

    with pytest.raises(InputError, match=f"{name} runs on a {kind}, and JAX found a CPU"):
        computation(ModelConfig(attention=name), mesh("cpu"))
    assert computation(ModelConfig(attention=name), mesh(kind.lower())).attention == name
    assert computation(ModelConfig(), mesh(kind.lower())).attention == "xla"
    assert computation(ModelConfig(), mesh("cpu")).attention == "blocked"


COMPILE = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxllm.attention.backends import make_attend
from jaxllm.attention.visibility import Visibility
from jaxllm.nn.sharding import make_mesh

topology = get_topology_desc(
    platform="tpu", topology_name="v5e:2x2", chip_config_name="default",
    chips_per_host_bounds=(2, 2, 1), num_slices=1, wrap=(False, False, False),
)
mesh = make_mesh(2, 1, 2, devices=topology.devices)

def loss(q, k, v, ids, flag):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        seen = Visibility.of_rows(512, None, ids, window=(64, 64))
        attend = make_attend("splash", seen)
        return jnp.sum(attend(q, k, v, is_global=flag)[0].astype(jnp.float32))

x = jax.ShapeDtypeStruct(
    (4, 512, 4, 64), jnp.bfloat16, sharding=NamedSharding(mesh, P("data", None, "tensor", None))
)
ids = jax.ShapeDtypeStruct((4, 512), jnp.int32, sharding=NamedSharding(mesh, P("data")))
flag = jax.ShapeDtypeStruct((), jnp.bool_, sharding=NamedSharding(mesh, P()))
text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, ids, flag).compile().as_text()
print(text.count("tpu_custom_call"))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu"
)
def test_splash_compiles_for_a_slice_of_v5e():
    environment = {**os.environ, "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 4  # forward and backward, everywhere and near
