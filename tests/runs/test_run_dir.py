"""Whose a run directory is: finished runs, other configs, other programs, other processes."""

import errno
import os
import resource
import shutil

import pytest
from toy_run import build, make_config

from jaxllm.errors import InputError
from jaxllm.runs import curves, directory, loop
from jaxllm.runs.directory import RunDir
from jaxllm.runs.log import read_records


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)


def test_a_finished_run_is_left_as_it_is(tmp_path, caplog):
    config = make_config(tmp_path)
    summary = loop.run(build(config), config)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.parent.name != "run"}

    def never(config):
        raise AssertionError("built again")

    with caplog.at_level("INFO", "jaxllm"):
        assert loop.train(config, never) == summary
    assert "finished" in caplog.text
    after = {p: p.stat().st_mtime_ns for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed <= {"config.yaml", ".lock", tmp_path.name}


def test_another_config_in_the_directory_is_refused_by_key(tmp_path):
    config = make_config(tmp_path, **{"train.steps": 6})
    loop.run(build(config), config)
    text = (tmp_path / "config.yaml").read_text()
    other = make_config(tmp_path, **{"train.steps": 7, "optimizer.learning_rate": 1e-3})
    with pytest.raises(InputError) as error:
        loop.run(build(other), other)
    message = str(error.value)
    assert "optimizer.learning_rate: 2e-05 -> 0.001; train.steps: 6 -> 7" in message
    assert f"jaxllm train --config {tmp_path / 'config.yaml'}" in message
    assert "another run.dir" in message
    assert (tmp_path / "config.yaml").read_text() == text
    harmless = make_config(tmp_path, **{"train.steps": 6, "run.log_every": 3, "run.keep": 7})
    assert loop.run(build(harmless), harmless)["train/steps"] == 6


def test_a_run_that_never_saved_may_start_anew_with_another_config(tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(loop.RunError, match="none yet"):
        loop.run(build(config, poison=5), config)
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [4]
    other = make_config(tmp_path, **{"optimizer.learning_rate": 1e-3})
    loop.run(build(other), other)
    steps = [r["step"] for r in read_records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert steps == [4, 8, 12, 16, 18]


@pytest.mark.parametrize("name", ["checkpoints", "model", "summary.json"])
def test_a_directory_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    config = make_config(tmp_path)
    with pytest.raises(InputError, match=f"{name} but no config.yaml.*another run.dir"):
        loop.run(build(config), config)
    assert not (tmp_path / "config.yaml").exists()


def test_a_snapshot_of_another_run_is_refused(tmp_path):
    for name, rate in (("a", 1e-3), ("b", 1e-4)):
        config = make_config(tmp_path / name, **{"optimizer.learning_rate": rate})
        with pytest.raises(loop.RunError):
            loop.run(build(config, poison=9), config)
    for snapshot in (tmp_path / "b" / "checkpoints").iterdir():
        snapshot.rename(tmp_path / "a" / "checkpoints" / "step_00000007")
    config = make_config(tmp_path / "a", **{"optimizer.learning_rate": 1e-3})
    with pytest.raises(InputError, match="step_00000007"):
        loop.run(build(config), config)


def test_a_mesh_whose_batches_have_other_rows_is_refused(tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(loop.RunError):
        loop.run(build(config, poison=9), config)
    job = build(config)
    job.loader.rows_per_batch = 8
    with pytest.raises(InputError, match=r"batches of 4 rows, this mesh needs 8.*mesh\.data"):
        loop.run(job, config)


@pytest.mark.parametrize(
    "name", ["a[b]", "[", "a]", "a*", "a?", "a\\b", "a\udcffb", "a\0b"], ids=ascii
)
def test_a_path_that_snapshots_cannot_be_read_from_is_refused_first(tmp_path, name):
    def never(config):
        raise AssertionError("built")

    with pytest.raises(InputError, match=r"run\.dir: found .* with .* in it.*another run\.dir"):
        loop.train(make_config(tmp_path / name), never)
    assert not list(tmp_path.iterdir())


def test_a_relative_path_is_judged_by_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "[1]").mkdir()
    monkeypatch.chdir(tmp_path / "[1]")
    with pytest.raises(InputError, match=r"found '.*/\[1\]/run' with \[ and \] in it"):
        loop.run(build(make_config("run")), make_config("run"))


@pytest.mark.parametrize("name", ["a b", "~x", "é", "a{b}", "a%20#b:c", "-x", "$HOME"])
def test_other_odd_paths_are_read_again(tmp_path, name):
    config = make_config(tmp_path / name, **{"train.steps": 12})
    with pytest.raises(loop.RunError):
        loop.run(build(config, poison=8), config)
    assert loop.run(build(config), config)["train/steps"] == 12


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_is_one_message(tmp_path, monkeypatch, finished, code):
    config = make_config(tmp_path, **{"train.steps": 6})
    if finished:
        loop.run(build(config), config)
    before = sorted(tmp_path.rglob("*"))

    def refuse(file, *_, **__):
        raise OSError(code, os.strerror(code), file)

    monkeypatch.setattr(directory, "open", refuse, raising=False)  # root may write anywhere
    with pytest.raises(InputError) as error:
        loop.run(build(config), config)
    message = f"could not write {tmp_path}: {os.strerror(code)}. Give a run.dir that can be written"
    assert str(error.value).startswith(message)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_for_the_lock_is_one_message(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = make_config(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(InputError, match=f"could not write {tmp_path}: File too large"):
            loop.run(build(config), config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", [".lock", "config.yaml", "checkpoints"])
def test_a_file_where_a_directory_belongs_and_the_reverse(tmp_path, name):
    config = make_config(tmp_path, **{"train.steps": 6})
    if name == "checkpoints":
        loop.run(build(config), config)
        (tmp_path / "summary.json").unlink()
        shutil.rmtree(tmp_path / name)
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}.*{name}|{tmp_path}: .*directory"):
        loop.run(build(config), config)


def test_two_runs_in_one_directory(tmp_path):
    config = make_config(tmp_path)
    with RunDir(config):
        with pytest.raises(InputError, match=rf"in use.*pid {os.getpid()} .*started 20.*run\.dir"):
            loop.run(build(config), config)
        assert not (tmp_path / "checkpoints").exists()
    assert loop.run(build(config), config)["train/steps"] == 18


def test_a_model_that_was_being_replaced_is_put_back(tmp_path):
    config = make_config(tmp_path, **{"train.steps": 6})
    loop.run(build(config), config)
    content = (tmp_path / "model/params.npz").read_bytes()
    (tmp_path / "model").rename(tmp_path / ".model.old")  # and there the process was killed
    with RunDir(config):
        assert (tmp_path / "model/params.npz").read_bytes() == content
        assert not (tmp_path / ".model.old").exists()
