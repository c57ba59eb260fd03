"""kill -9, and everything else that ends a process, then the same command again."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy_run import build, last_state, make_config

from jaxllm.errors import InputError
from jaxllm.runs import curves, loop
from jaxllm.runs.log import read_records
from jaxllm.runs.snapshots import Snapshots

PROGRAM = [sys.executable, str(Path(__file__).parents[1] / "toy_run.py")]
# The library of this tree, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(loop.__file__).parents[1])}
REPRODUCED = (
    *("step", "epoch", "loss", "grad_norm", "learning_rate", "eval/loss", "eval/score"),
)  # the rest of a record is time


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)


def program(directory: Path, moment: str = "", **changes) -> subprocess.CompletedProcess:
    arguments = [*PROGRAM, str(directory), json.dumps(changes), moment]
    return subprocess.run(
        arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
    )


def reproduced(directory: Path) -> list[dict]:
    found = read_records(directory / "metrics.jsonl")
    return [{k: r[k] for k in REPRODUCED if k in r} for r in found]


def assert_same_run(one: Path, two: Path) -> None:
    """States, records, exported model, report and results, bit for bit."""
    a, b = last_state(one), last_state(two)
    assert a.keys() == b.keys()
    assert not [k for k in a if not np.array_equal(a[k], b[k])]
    assert reproduced(one) == reproduced(two)
    with np.load(one / "model/params.npz") as x, np.load(two / "model/params.npz") as y:
        assert x.files == y.files
        assert all(x[name].tobytes() == y[name].tobytes() for name in x.files)
    assert (one / "report.txt").read_text() == (two / "report.txt").read_text()
    results = [json.loads((d / "summary.json").read_text()) for d in (one, two)]
    kept = [
        {k: x for k, x in r.items() if k.startswith("eval/") or "step" in k.split("/")[1][:5]}
        for r in results
    ]
    kept = [{k: x for k, x in r.items() if "seconds" not in k} for r in kept]
    assert kept[0] == kept[1]
    assert kept[0]["train/steps"] == 18


def whole_run(directory: Path, **changes) -> Path:
    config = make_config(directory, **changes)
    loop.run(build(config), config)
    return directory


CHANGES = {"train.save_every": 4, "run.keep": 1}


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path):
    # Nine processes, each killed somewhere else in what is left of the same run.
    moments = [
        "step:3",  # before anything was saved
        "saving:4",
        "export",  # the first evaluation has nothing to replace; the second has
        "describe:8",
        "step:11",
        "export",
        "prune",
        "describe:18",
        "summary",
    ]
    directory = tmp_path / "killed"
    for moment in moments:
        done = program(directory, moment, **CHANGES)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
        assert not (directory / "summary.json").exists()
    done = program(directory, **CHANGES)
    assert done.returncode == 0, done.stderr
    assert_same_run(directory, whole_run(tmp_path / "whole", **CHANGES))
    names = {p.name for p in (directory / "checkpoints").iterdir()}
    assert names == {p.name for p in (tmp_path / "whole" / "checkpoints").iterdir()}
    names = {p.name for p in directory.iterdir()} - {"curves.png"}
    assert names == {p.name for p in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 7, 11, 12, 13, 18])
def test_stopped_at_each_step_changes_nothing(tmp_path, tmp_path_factory, stop_at):
    class Gone(BaseException):
        pass

    def before_step(step: int) -> None:
        if step == stop_at:
            raise Gone

    whole = tmp_path_factory.getbasetemp() / "whole"
    if not whole.exists():
        whole_run(whole, **{"run.log_every": 5, "train.save_every": 4})
    config = make_config(tmp_path, **{"run.log_every": 5, "train.save_every": 4})
    with pytest.raises(Gone):
        loop.run(build(config, before_step=before_step), config)
    loop.run(build(config), config)
    assert_same_run(tmp_path, whole)


def test_patience_and_the_best_survive_a_stop(tmp_path):
    scores = [0.1, 0.3, 0.2, 0.25, 0.9, 0.2]
    changes = {"train.steps": 60, "train.patience": 2}

    class Gone(BaseException):
        pass

    def before_step(step: int) -> None:
        if step == 20:
            raise Gone

    config = make_config(tmp_path, **changes)
    with pytest.raises(Gone):
        loop.run(build(config, scores=scores, before_step=before_step), config)
    summary = loop.run(build(config, scores=scores[3:]), config)
    assert (summary["train/steps"], summary["train/best_step"]) == (24, 12)
    assert summary["eval/score"] == 0.3


def test_sigterm_saves_and_exits_with_143(tmp_path):
    stopped = program(tmp_path / "run", "signal:9")
    assert stopped.returncode == 143
    assert "stopped after step 9 of 18, and saved" in stopped.stderr
    command = f"jaxllm train --config {tmp_path / 'run' / 'config.yaml'}"
    assert stopped.stderr.strip().endswith(command)
    assert "Traceback" not in stopped.stderr
    assert program(tmp_path / "run").returncode == 0
    assert_same_run(tmp_path / "run", whole_run(tmp_path / "whole"))


def test_the_lock_goes_with_its_process(tmp_path):
    config = make_config(tmp_path)
    arguments = [*PROGRAM, str(tmp_path), "{}", "wait:8"]
    with subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "step 8\n"  # and there it stays until it is killed
        with pytest.raises(InputError, match=rf"in use by another run \(pid {first.pid} on "):
            loop.run(build(config), config)
        first.kill()
    assert loop.run(build(config), config)["train/steps"] == 18


def test_a_full_disk_stops_with_a_message_and_keeps_what_was_there(tmp_path):
    # 2.4 MB of parameters; a file of 1 MB is then too large.
    big = {"size": 600_000}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = make_config(tmp_path / "run")

    def before_step(step: int) -> None:
        if step == 9:
            while not (tmp_path / "run/checkpoints/step_00000006").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))

    try:
        with pytest.raises(InputError, match=r"the model to .*model: File too large"):
            loop.run(build(config, before_step=before_step, **big), config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    directory = tmp_path / "run"
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["step_00000006"]
    assert [p.name for p in (directory / "model").iterdir()] == ["params.npz"]
    assert not [p for p in directory.iterdir() if p.name.startswith(".model")]
    short = make_config(tmp_path / "short", **{"train.steps": 6})
    loop.run(build(short, **big), short)
    content = (tmp_path / "short/model/params.npz").read_bytes()
    assert (directory / "model/params.npz").read_bytes() == content
    loop.run(build(config, **big), config)
    whole = make_config(tmp_path / "whole")
    loop.run(build(whole, **big), whole)
    assert reproduced(directory) == reproduced(tmp_path / "whole")


def test_a_disk_that_fills_up_in_a_save_exits_with_2(tmp_path):
    changes = {"train.steps": 24, "train.save_every": 6, "train.eval_every": 100}
    changes["size"] = 600_000
    stopped = program(tmp_path / "run", "disk:9", **changes)
    assert stopped.returncode == 2
    (line,) = stopped.stderr.splitlines()  # nothing of Orbax, TensorStore or asyncio beside it
    assert line.startswith("jaxllm: error: could not write the snapshot of step 12 in ")
    assert "File too large; that of step 6 is intact" in line
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000006"]
    assert program(tmp_path / "run", **changes).returncode == 0
    whole = make_config(tmp_path / "whole", **{k: x for k, x in changes.items() if "." in k})
    loop.run(build(whole, size=changes["size"]), whole)
    assert reproduced(tmp_path / "run") == reproduced(tmp_path / "whole")


def test_a_full_disk_for_the_snapshot_keeps_the_one_before(tmp_path, monkeypatch):
    describe = Snapshots._describe

    def full(self: Snapshots) -> None:
        describe(self)
        if self._saving and self._saving["step"] == 12:
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Snapshots, "_describe", full)
    config = make_config(tmp_path)
    with pytest.raises(
        InputError, match=r"step 12 .*No space left on device; that of step 6 is intact"
    ):
        loop.run(build(config), config)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000006"]
    assert not (tmp_path / "summary.json").exists()


def test_a_half_written_line_of_metrics_is_dropped(tmp_path):
    config = make_config(tmp_path, **{"run.log_every": 1})
    with pytest.raises(loop.RunError):
        loop.run(build(config, poison=11), config)
    metrics = tmp_path / "metrics.jsonl"
    assert [r["step"] for r in read_records(metrics)][-1] == 10
    with open(metrics, "a") as file:
        file.write('{"step": 11, "lo')
    loop.run(build(config), config)
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [r["step"] for r in steps if "loss" in r] == list(range(1, 19))


def test_a_damaged_snapshot_is_refused_and_the_way_out_works(tmp_path):
    config = make_config(tmp_path / "run")
    with pytest.raises(loop.RunError):
        loop.run(build(config, poison=15), config)
    damaged = tmp_path / "run" / "checkpoints" / "step_00000012"
    data = max((p for p in damaged.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"step_00000012 is damaged.*goes on from step 6"):
        loop.run(build(config), config)
    for file in sorted(damaged.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    damaged.rmdir()
    loop.run(build(config), config)
    assert_same_run(tmp_path / "run", whole_run(tmp_path / "whole"))


@pytest.mark.parametrize("harm", ["cut", "delete", "delete_before_the_last_save"])
def test_a_run_whose_best_snapshot_is_lost_ends_with_its_best_model(tmp_path, caplog, harm):
    scores = [0.1, 0.9, 0.2, 0.3]
    whole = make_config(tmp_path / "whole", **{"train.steps": 24, "run.keep": 1})
    expected = loop.run(build(whole, scores=[*scores, 0.9]), whole)
    best = tmp_path / "run" / "checkpoints" / "step_00000012"

    def before_step(step: int) -> None:
        if step != (18 if harm == "delete_before_the_last_save" else 24):
            return
        while not best.exists():
            time.sleep(0.01)
        if harm == "cut":
            data = max((p for p in best.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
            data.write_bytes(data.read_bytes()[:-1])
        else:
            shutil.rmtree(best)

    config = make_config(tmp_path / "run", **{"train.steps": 24, "run.keep": 1})
    summary = loop.run(build(config, scores=scores, before_step=before_step), config)
    assert summary["train/best_step"] == expected["train/best_step"] == 12
    assert summary["eval/score"] == 0.9
    content = (tmp_path / "whole/model/params.npz").read_bytes()
    assert (tmp_path / "run/model/params.npz").read_bytes() == content
    assert not (tmp_path / "run/report.txt").exists()
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.startswith(f"{best} is damaged (")
    assert f"--model.path {tmp_path / 'run' / 'model'}" in message
    assert (tmp_path / "run/summary.json").exists()


def test_a_best_snapshot_that_is_deleted_and_then_surpassed(tmp_path):
    config = make_config(tmp_path, **{"run.keep": 1})
    best = tmp_path / "checkpoints" / "step_00000006"

    def before_step(step: int) -> None:
        if step == 13:
            shutil.rmtree(best)

    scores = [0.8, 0.1, 0.9]
    summary = loop.run(build(config, scores=[*scores, 0.9], before_step=before_step), config)
    assert summary["train/best_step"] == 18


def test_a_damaged_best_snapshot_says_from_where_the_run_goes_on(tmp_path):
    config = make_config(tmp_path, **{"run.keep": 1})
    scores = [0.9, 0.1, 0.1]
    with pytest.raises(loop.RunError):
        loop.run(build(config, scores=scores, poison=15), config)
    best = tmp_path / "checkpoints" / "step_00000006"
    (best / "jaxllm.json").write_text("{}")
    with pytest.raises(InputError, match=r"step_00000006 is damaged.*goes on from step 12\."):
        loop.run(build(config), config)
    shutil.rmtree(best)
    assert loop.run(build(config, scores=scores), config)["train/best_step"] == 6


def test_other_data_are_named_before_arrays_of_another_shape(tmp_path):
    """The table of reached words has other rows with other text; that is not another model."""

    def stop(step):
        if step == 5:
            raise RuntimeError("stopped")

    def of_other_data(config):
        job = build(config, size=7)
        job.loader.fingerprint = 8
        return job

    config = make_config(tmp_path, **{"train.save_every": 2})
    with pytest.raises(RuntimeError, match="stopped"):
        loop.train(config, lambda c: build(c, before_step=stop))
    with pytest.raises(InputError, match="is of a run on other data"):
        loop.train(config, of_other_data)
