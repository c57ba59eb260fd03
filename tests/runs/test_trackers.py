"""Trackers: wandb by a stand-in, TensorBoard's files, and the key with the old name."""

import contextlib
import dataclasses
import errno
import os
import sys
import threading
import types

import pytest
from toy_run import build, make_config

from jaxllm.config import reading
from jaxllm.config.checks import check
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig
from jaxllm.errors import InputError
from jaxllm.runs import curves, loop, trackers
from jaxllm.runs.directory import changes
from jaxllm.runs.log import read_records


class FakeRun(contextlib.AbstractContextManager):
    """A run of wandb: what was logged, and how it ended."""

    def __init__(self, options: dict) -> None:
        self.options, self.logged, self.axis, self.failed = options, [], {}, None

    def define_metric(self, name, step_metric):
        self.axis[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def __exit__(self, kind, *_):
        self.failed = kind is not None


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for wandb 0.31: `mode` and `login` as its settings and its answer to `login`."""
    module = types.ModuleType("wandb")
    module.runs, module.mode, module.has_login = [], "offline", False
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    settings = types.SimpleNamespace()
    module.setup = lambda: types.SimpleNamespace(settings=settings)
    module.login = lambda prompt: module.has_login

    def init(**options):
        if module.mode == "unreachable":
            raise module.errors.Error("timed out")
        module.runs.append(FakeRun(options))
        return module.runs[-1]

    module.init = init

    def choose(mode):
        module.mode = settings.mode = mode

    module.choose = choose
    choose("offline")
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)
    return module


def test_wandb_gets_every_record_and_one_run_goes_on(wandb, tmp_path):
    changes = {"run.trackers": ["wandb"], "train.steps": 12}
    first = make_config(tmp_path, **changes)

    def stop(step):
        if step == 10:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        loop.run(build(first, before_step=stop), first)
    loop.run(build(first), first)
    before, after = wandb.runs
    assert before.options["id"] == after.options["id"]
    assert after.options["resume"] == "allow"
    assert after.options["project"] == "jaxllm"
    assert after.options["name"] == str(tmp_path)
    assert after.options["config"]["train"]["steps"] == 12
    assert (before.failed, after.failed) == (True, False)
    # Steps that the first start logged after its last snapshot come again.
    assert [values["step"] for values in before.logged] == [4, 6, 8]
    assert [values["step"] for values in after.logged] == [8, 12, 12]
    assert after.axis == {"*": "step"}
    last, evaluation = read_records(tmp_path / "metrics.jsonl")[-2:]
    assert after.logged[1]["train/loss"] == last["loss"]
    assert after.logged[2]["eval/loss"] == evaluation["eval/loss"]


def test_another_run_is_another_run_of_wandb(wandb, tmp_path):
    for name in ("a", "b"):
        one = make_config(tmp_path / name, **{"run.trackers": ["wandb"], "train.steps": 2})
        loop.run(build(one), one)
    assert wandb.runs[0].options["id"] != wandb.runs[1].options["id"]
    (tmp_path / "a" / "wandb" / "run_id").write_bytes(b"\xff\x00")
    with pytest.raises(InputError, match=r"run_id: is damaged .*delete it"):
        next(trackers.wandb(tmp_path / "a", one, 0).gen)


def never(config):
    raise AssertionError("built, though the tracker cannot be used")


def test_wandb_not_installed_is_told_before_anything_is_built(tmp_path, monkeypatch):
    one = make_config(tmp_path / "run", **{"run.trackers": ["wandb"]})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"run\.trackers.*pip install 'wandb>=0\.31'"):
        loop.train(one, never)
    # The directory that a run of wandb leaves imports, too, and has nothing in it.
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="pip install"):
        loop.train(one, never)


def test_wandb_without_login_or_server_is_told(wandb, tmp_path):
    one = make_config(tmp_path, **{"run.trackers": ["wandb"]})
    wandb.choose("online")
    with pytest.raises(InputError, match=r"wandb login.*WANDB_MODE=offline"):
        loop.train(one, never)
    wandb.has_login = True
    trackers.check(["wandb"])
    wandb.login = lambda: True  # of an older version
    with pytest.raises(InputError, match=r"wandb, which cannot be used .*pip install"):
        loop.train(one, never)
    wandb.login = lambda prompt: True
    wandb.choose("unreachable")
    with pytest.raises(InputError, match=r"timed out.*WANDB_MODE=offline"):
        loop.run(build(one), one)


@pytest.mark.parametrize(("old", "new"), [("true", ["tensorboard"]), ("false", [])])
def test_the_old_key_still_loads_and_says_its_new_name_once(tmp_path, caplog, old, new):
    file = tmp_path / "c.yaml"
    base = "model: {path: w}\ndata: {train: [a.csv]}\n"
    file.write_text(f"{base}run: {{tensorboard: {old}}}\n")
    wanted = Config(
        model=ModelConfig(path="w"), data=DataConfig(train=["a.csv"]), run=RunConfig(trackers=new)
    )
    assert reading.from_yaml(file) == wanted
    other = "false" if old == "true" else "true"
    for options in (
        ["--config", str(file)],
        ["--config", str(file), "--config", str(file), "--run.tensorboard", old],
        ["--config", str(file), f"--run.tensorboard={old}"],
        ["--run.tensorboard", other, "--config", str(file), "--run.tensorboard", old],
    ):
        caplog.clear()
        assert reading.load(options) == wanted
        (said,) = [record.getMessage() for record in caplog.records]
        assert "run.tensorboard is now called run.trackers" in said
    file.write_text(f"{base}run: {{tensorboard: 3}}\n")
    with pytest.raises(InputError, match=r"line 3: run\.tensorboard: found 3, expected true or"):
        reading.from_yaml(file)
    file.write_text(f"{base}run: {{tensorboard: {old}, trackers: []}}\n")
    with pytest.raises(InputError, match=r"run\.trackers is there twice"):
        reading.from_yaml(file)
    for value in ("maybe", ":"):
        with pytest.raises(InputError, match=r"--run\.tensorboard: found '.*', expected true or"):
            reading.load(["--run.tensorboard", value])


def test_a_run_begun_under_the_old_key_goes_on():
    now = reading.to_yaml(Config())
    before = now.replace("  trackers:\n  - tensorboard\n", "  tensorboard: true\n")
    assert before != now
    assert changes(before, now) == {}


def test_a_tracker_twice_is_refused():
    one = Config(model=ModelConfig(path="w"), data=DataConfig(train=["a.csv"]))
    one = dataclasses.replace(one, run=RunConfig(trackers=["wandb", "wandb"]))
    with pytest.raises(InputError, match=r"run\.trackers"):
        check(one)
    with pytest.raises(InputError, match="expected a list of tensorboard, wandb"):
        reading.load(["--run.trackers", "[neptune]"])


def test_a_full_disk_for_tensorboard_is_one_message_and_leaves_no_thread(tmp_path, monkeypatch):
    import tensorboardX.event_file_writer as files

    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.EventFileWriter, "flush", flush)
    message = r"could not write .*/tensorboard: No space left on device\. Make room"
    config = make_config(tmp_path)
    with pytest.raises(InputError, match=message), trackers.tensorboard(tmp_path, config, 0) as add:
        add({"loss": 1.0}, 1)
    # It would print a traceback at exit.
    assert not [t for t in threading.enumerate() if isinstance(t, files._EventLoggerThread)]
