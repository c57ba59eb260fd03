"""Snapshots: round trip, another mesh, what is kept, damage, a full disk."""

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.data.loader import LoaderState
from jaxllm.errors import InputError
from jaxllm.runs.snapshots import Snapshots

AT = LoaderState(epoch=2, step=5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def make_state(sharding: Any = None, width: int = 16, seed: int = 0) -> State:
    """Parameters in float32 and bfloat16, Adam, a masked part, a key; random, so that nothing
    compresses."""
    rng = np.random.default_rng(seed)
    params = {
        "blocks": {"kernel": jnp.asarray(rng.normal(size=(8, width)), jnp.float32)},
        "head": {"bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16)},
    }
    tx = optax.masked(optax.adamw(1e-3), {"blocks": True, "head": False})
    flat = {
        "blocks/kernel": params["blocks"]["kernel"]
    }  # names with slashes, as our optimizers use
    state = State(
        jnp.int32(7),
        params,
        (tx.init(params), optax.adam(1e-3).init(flat)),
        jax.random.key_data(jax.random.key(3)),
    )
    return state if sharding is None else jax.tree.map(lambda x: place(x, sharding), state)


def place(x: jax.Array, mesh: Mesh) -> jax.Array:
    spec = P(*mesh.axis_names[: x.ndim]) if x.ndim == 2 else P()
    return jax.device_put(x, NamedSharding(mesh, spec))


def shapes(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def copies(state: Any) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(state)]


def same(state: Any, expected: list[np.ndarray]) -> bool:
    found = [np.asarray(x) for x in jax.tree.leaves(state)]
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(found, expected, strict=True)
    )


def mesh(*sizes: int) -> Mesh:
    count = int(np.prod(sizes))
    return Mesh(np.array(jax.devices()[:count]).reshape(sizes), ("data", "tensor")[: len(sizes)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[..., Snapshots]]:
    """Opens (again) the snapshots of one directory; the ones before are closed."""
    opened: list[Snapshots] = []

    def open_(**changes: Any) -> Snapshots:
        for snapshots in opened:
            snapshots.close()
        opened.clear()
        arguments = {"keep": 2, "metric": "f1", "higher_is_better": True, **changes}
        opened.append(Snapshots(tmp_path / "checkpoints", **arguments))
        return opened[-1]

    yield open_
    for snapshots in opened:
        snapshots.close()


def test_round_trip_of_a_state_that_is_donated_while_it_is_written(store):
    state = make_state(mesh(4, 2))
    expected = copies(state)
    shape = shapes(state)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    snapshots = store()
    snapshots.save(7, state, AT, {"best": 0.1, "stale": 3, "text": "ä"})
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    restored, position, extra = store().restore(7, shape)
    assert same(restored, expected)
    assert not same(state, expected)
    assert position == AT
    assert extra == {"best": 0.1, "stale": 3, "text": "ä"}
    assert jax.tree.structure(restored) == jax.tree.structure(shape)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, shape)


@pytest.mark.parametrize("sizes", [(1,), (8,), (2, 4)])
def test_restores_on_another_mesh(store, sizes):
    state = make_state(mesh(4, 2))
    expected = copies(state)
    store().save(7, state, AT, {})
    wanted = shapes(make_state(mesh(*sizes), seed=1))
    restored, _, _ = store().restore(7, wanted)
    assert same(restored, expected)
    assert restored.params["blocks"]["kernel"].sharding.mesh.shape == mesh(*sizes).shape
    params = store().restore_params(7, wanted)
    assert same(params, copies(state.params))


def test_a_typed_key_comes_back(store):
    state = dataclasses.replace(make_state(), key=jax.random.key(5))
    store().save(1, state, AT, {})
    restored, _, _ = store().restore(1, shapes(state))
    assert jax.random.key_data(restored.key).tolist() == jax.random.key_data(state.key).tolist()
    assert restored.key.dtype == state.key.dtype


def test_save_returns_before_the_snapshot_is_written(store, monkeypatch, tmp_path):
    go_on = threading.Event()
    describe = Snapshots._describe
    monkeypatch.setattr(Snapshots, "_describe", lambda self: (go_on.wait(20), describe(self))[1])
    snapshots = store()
    snapshots.save(1, make_state(), AT, {})
    assert not snapshots.path(1).exists()
    go_on.set()
    snapshots.wait()
    assert snapshots.path(1).exists()
    assert snapshots.path(1).parent == tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("higher", "scores", "left", "best"),
    [
        (True, [0.1, 0.9, 0.5, 0.9, 0.2, 0.3], [2, 5, 6], 2),
        (False, [0.1, 0.9, 0.5, 0.9, 0.2, 0.3], [1, 5, 6], 1),
        (True, [None, None, float("nan"), None], [3, 4], None),
        (True, [0.5, None, None, float("nan"), 0.7], [4, 5], 5),
    ],
)
def test_keeps_the_last_and_the_best(store, higher, scores, left, best):
    snapshots = store(higher_is_better=higher)
    state = make_state()
    for step, score in enumerate(scores, 1):
        snapshots.save(step, state, AT, {}, None if score is None else {"f1": score, "loss": 0.0})
    snapshots.wait()
    for seen in (snapshots, store(higher_is_better=higher)):  # also as read from disk
        assert sorted(p.name for p in seen.directory.iterdir()) == [f"step_{n:08d}" for n in left]
        assert (seen.latest(), seen.best()) == (left[-1], best)


def test_saving_a_step_again_changes_what_is_said_of_it(store):
    state = make_state()
    snapshots = store()
    snapshots.save(3, state, AT, {"evaluated": 0})
    snapshots.save(3, make_state(seed=1), LoaderState(3, 0), {"evaluated": 3}, {"f1": 0.5})
    snapshots = store()
    assert snapshots.best() == 3
    restored, position, extra = snapshots.restore(3, shapes(state))
    assert same(restored, copies(state))
    assert (position, extra) == (LoaderState(3, 0), {"evaluated": 3})


def test_an_unfinished_save_is_ignored_and_removed(store):
    snapshots = store()
    snapshots.save(1, make_state(), AT, {})
    snapshots.close()
    unfinished = snapshots.directory / "step_00000002.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "x").write_text("half")
    half_removed = snapshots.directory / ".step_00000000.deleted"
    half_removed.mkdir()
    assert store().latest() == 1
    assert not unfinished.exists()
    assert not half_removed.exists()


def _files(directory: Path) -> list[Path]:
    important = ("params", "state", "jaxllm.json")
    return [
        file
        for file in sorted(directory.rglob("*"))
        if file.is_file()
        and file.relative_to(directory).parts[0] in important
        and file.name != "commit_success.txt"
    ]


def _delete(file: Path) -> None:
    file.unlink()


def _truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x01
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_delete, _truncate, _flip])
def test_each_damaged_file_is_noticed(store, damage):
    state = make_state()
    snapshots = store(keep=3)
    snapshots.save(1, state, AT, {})
    snapshots.save(2, state, AT, {})
    snapshots.close()
    directory = snapshots.path(2)
    contents = {file: file.read_bytes() for file in _files(directory)}
    assert len(contents) > 8
    for file, content in contents.items():
        damage(file)
        with pytest.raises(InputError, match="step_00000002") as error:
            store(keep=3).restore(2, shapes(state))
        assert "Delete that directory" in str(error.value) or "Move it away" in str(error.value)
        if "Delete" in str(error.value):
            assert "goes on from step 1" in str(error.value)
        file.write_bytes(content)
    restored, _, _ = store(keep=3).restore(2, shapes(state))
    assert same(restored, copies(state))


def test_a_foreign_directory_is_refused(store, tmp_path):
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / "pytorch_model.bin").write_text("x")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*another run\.dir"):
        store()
    assert (directory / "pytorch_model.bin").read_text() == "x"


def test_another_model_is_refused_with_the_name_of_the_parameter(store):
    store().save(1, make_state(width=16), AT, {})
    with pytest.raises(InputError) as error:
        store().restore(1, shapes(make_state(width=24)))
    message = str(error.value)
    assert "step_00000001" in message
    assert "kernel is float32[8,16] there and float32[8,24] here" in message
    other = make_state()
    other = dataclasses.replace(other, params={**other.params, "pooler": jnp.zeros(3)})
    with pytest.raises(InputError, match=r"params/pooler is absent there and float32\[3\] here"):
        store().restore(1, shapes(other))
    with pytest.raises(InputError, match="params/pooler"):
        store().restore_params(1, shapes(other))


def test_a_full_disk_is_seen_before_anything_is_written(store, monkeypatch):
    snapshots = store()
    snapshots.save(1, make_state(), AT, {})
    snapshots.wait()
    usage = shutil.disk_usage(snapshots.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"step 2 .*No space.*1,000 are free.*step 1 is intact"):
        snapshots.save(2, make_state(), AT, {})
    assert [p.name for p in snapshots.directory.iterdir()] == ["step_00000001"]


def test_a_failure_that_is_not_the_disks_is_not_called_one(store, monkeypatch):
    def broken(self: Snapshots) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Snapshots, "_describe", broken)
    snapshots = store()
    snapshots.save(1, make_state(), AT, {})
    with pytest.raises(RuntimeError, match="a bug"):
        snapshots.wait()
    assert snapshots.latest() is None
    assert list(snapshots.directory.iterdir()) == []
