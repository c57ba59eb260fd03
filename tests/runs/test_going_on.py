"""A finished run goes on for more epochs or steps, from its last snapshot, bit for bit."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import yaml
from toy_run import build, last_state, make_config

from jaxllm.errors import InputError
from jaxllm.runs import curves, loop
from jaxllm.runs.directory import UNFINISHED
from jaxllm.runs.log import read_records


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 2 epochs, 12 steps."""
    directory = tmp_path_factory.mktemp("going_on") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", lambda *_: None)
        train(directory, **{"train.epochs": 2.0})
    return directory


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def train(directory, scores=None, before_step=lambda step: None, **changes):
    config = make_config(directory, **changes)
    return loop.train(config, lambda c: build(c, scores=scores, before_step=before_step))


def summary(run):
    return json.loads((run / "summary.json").read_text())


def steps_of_run(run):
    return [r["step"] for r in read_records(run / "metrics.jsonl") if "loss" in r]


def tree(run):
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


MORE = {"train.epochs": 4.0}


class Gone(BaseException):
    """A process that is killed."""


def dies_at(moment):
    def before_step(step):
        if step == moment:
            raise Gone

    return before_step


@pytest.mark.parametrize("more", [MORE, {"train.epochs": 2.0, "train.steps": 24}], ids=str)
def test_more_epochs_or_steps_go_on_from_the_last_snapshot(run, more, caplog):
    seen = []
    old = summary(run)
    new = train(run, before_step=seen.append, **more)
    assert seen == list(range(13, 25))
    assert (old["train/steps"], new["train/steps"]) == (12, 24)
    assert summary(run) == new
    assert new["eval/loss"] < old["eval/loss"]
    assert steps_of_run(run) == [4, 8, 12, 16, 20, 24]
    assert [r["step"] for r in read_records(run / "metrics.jsonl") if "eval/loss" in r] == [
        *(6, 12, 18, 24)
    ]
    state = last_state(run)
    assert state[".step"] == 24
    assert state[".opt_state[0].count"] == 24  # the optimizer's own count: it went on, too
    saved = yaml.safe_load((run / "config.yaml").read_text())["train"]
    assert {"train.epochs": saved["epochs"], "train.steps": saved["steps"]} == {
        "train.steps": None,
        **more,
    }
    assert not (run / UNFINISHED).exists()
    before = tree(run)
    assert train(run, **more) == new  # finished again
    assert tree(run) == before
    assert train(run, **{**more, **LONGEST[len(more)]})["train/steps"] == 30


LONGEST = {1: {"train.epochs": 5.0}, 2: {"train.steps": 30}}


@pytest.mark.parametrize("moment", [13, 15, 19, 24])
def test_interrupted_it_goes_on_bit_for_bit(run, finished, tmp_path, moment):
    old = summary(run)
    with pytest.raises(Gone):
        train(run, before_step=dies_at(moment), **MORE)
    assert summary(run) == old  # until the end
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == 4
    new = train(run, **MORE)
    whole = shutil.copytree(finished, tmp_path / "whole")
    other = train(whole, **MORE)
    a, b = last_state(run), last_state(whole)
    assert a.keys() == b.keys()
    assert not [k for k in a if not np.array_equal(a[k], b[k])]
    assert (run / "report.txt").read_bytes() == (whole / "report.txt").read_bytes()
    assert new["eval/loss"] == other["eval/loss"]


def test_killed_before_the_new_summary_or_before_its_mark_is_removed(run, monkeypatch):
    def die(*_):
        raise Gone

    old = summary(run)
    with monkeypatch.context() as patch:
        patch.setattr(loop.RunDir, "write_summary", die)
        with pytest.raises(Gone):
            train(run, **MORE)
    assert summary(run) == old
    assert train(run, **MORE)["train/steps"] == 24
    (run / UNFINISHED).touch()
    assert train(run, **MORE)["train/steps"] == 24
    assert not (run / UNFINISHED).exists()


def test_a_signal_stops_it_and_the_told_command_goes_on(run):
    def stop(step):
        if step == 14:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match="stopped after step 14 of 24, and saved"):
        train(run, before_step=stop, **MORE)
    seen = []
    assert train(run, before_step=seen.append, **MORE)["train/steps"] == 24
    assert seen[0] == 15


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_a_schedule_that_depends_on_the_length_is_told_once(run, caplog):
    with pytest.raises(Gone):
        train(run, before_step=dies_at(20), **MORE)
    (message,) = warnings(caplog)
    assert message.startswith(
        "optimizer.schedule=linear depends on the length of the run, which was 12 steps and is 24 "
        "now: the learning rate goes on at 0.088 in step 13 and ends at 0.077. A run of 24 steps"
    )
    train(run, **MORE)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer.schedule": "constant"}, False),
        ({"optimizer.schedule": "constant", "optimizer.warmup": 0.5}, False),
        ({"optimizer.schedule": "inverse_sqrt", "optimizer.warmup": 5.0}, False),
        ({"optimizer.schedule": "inverse_sqrt", "optimizer.warmup": 0.5}, True),
        ({"optimizer.schedule": "cosine"}, True),
    ],
    ids=str,
)
def test_which_schedules_depend_on_the_length(tmp_path, caplog, changes, told):
    changes = {**changes, "train.eval_every": 100}
    train(tmp_path, **{"train.epochs": 1.0}, **changes)
    train(tmp_path, **{"train.epochs": 2.0}, **changes)
    assert bool(warnings(caplog)) == told


@pytest.mark.parametrize(
    "other",
    [
        {"train.epochs": 1.0},
        {"train.steps": 12},
        {"train.steps": 6},
        {**MORE, "train.patience": 3},
        {**MORE, "train.batch_size": 8},
        {"train.epochs": 2.0, "optimizer.learning_rate": 1.0},
    ],
    ids=str,
)
def test_fewer_or_other_things_are_still_another_config(run, other):
    before = tree(run)
    with pytest.raises(InputError, match="holds a run of another config"):
        train(run, **{"train.epochs": 2.0, **other})
    assert tree(run) == before


def test_a_run_that_is_not_finished_is_not_made_longer(run):
    (run / "summary.json").unlink()
    with pytest.raises(InputError, match=r"another config \(train\.epochs: 2\.0 -> 4\.0\)"):
        train(run, **MORE)


def test_a_field_without_a_value_is_told_as_configurations_write_it(run):
    with pytest.raises(InputError, match=r"train\.steps: null -> 6"):
        train(run, **{"train.epochs": 2.0, "train.steps": 6})


@pytest.mark.parametrize("harm", ["gone", "data", "damaged"])
def test_what_cannot_go_on_stays_finished(run, harm):
    config = make_config(run, **MORE)
    if harm == "gone":
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").mkdir()
    if harm == "damaged":
        (run / "checkpoints/step_00000012/jaxllm.json").write_text("{}")
    before = tree(run)

    def of_these_data(c):
        job = build(c)
        job.loader.fingerprint += harm == "data"
        return job

    with pytest.raises(InputError, match=r"no snapshot of it|is damaged|run on other data"):
        loop.train(config, of_these_data)
    assert tree(run) == before
    assert train(run, **{"train.epochs": 2.0}) == summary(run)


def test_the_best_model_of_before_stays_where_nothing_better_comes(tmp_path):
    train(tmp_path, scores=[0.9, 0.1, 0.1], **{"train.epochs": 2.0, "run.keep": 1})
    best = (tmp_path / "model/params.npz").read_bytes()
    new = train(tmp_path, scores=[0.2, 0.3, 0.3], **{"train.epochs": 4.0, "run.keep": 1})
    assert (new["train/best_step"], new["eval/score"]) == (6, 0.9)
    assert (tmp_path / "model/params.npz").read_bytes() == best
    newer = train(tmp_path, scores=[0.95, 0.95], **{"train.epochs": 5.0, "run.keep": 1})
    assert newer["train/best_step"] == 30
    assert (tmp_path / "model/params.npz").read_bytes() != best


def test_several_seeds_go_on(tmp_path):
    seeds = {"run.seeds": [1, 2], "train.epochs": 1.0}
    train(tmp_path, **seeds)
    with pytest.raises(Gone):
        train(tmp_path, before_step=dies_at(9), **{**seeds, "train.epochs": 2.0})
    assert summary(tmp_path)["train/steps"] == 6
    assert train(tmp_path, **{**seeds, "train.epochs": 2.0})["train/steps"] == 12
    assert [summary(tmp_path / f"seed_{n}")["train/steps"] for n in (1, 2)] == [12, 12]
    assert not list(tmp_path.rglob(UNFINISHED))
