"""The loop with a toy job: what a run leaves behind, what stops it, what it refuses."""

import dataclasses
import itertools
import json
import logging
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_run
from toy_run import STEPS_IN_EPOCH, build, last_state, make_config

from jaxllm.config.reading import to_yaml
from jaxllm.errors import InputError
from jaxllm.runs import curves, loop
from jaxllm.runs.log import read_records
from jaxllm.runtime.interrupt import Interrupted

draw = curves.draw


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """Drawing takes longer than the rest of such a run; one test does it."""
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)


def records(directory: Path, *keys: str) -> list[tuple]:
    """The records of metrics.jsonl that have all these keys, as tuples of them."""
    found = read_records(directory / "metrics.jsonl")
    return [tuple(r[k] for k in keys) for r in found if all(k in r for k in keys)]


def exported(directory: Path) -> dict[str, np.ndarray]:
    with np.load(directory / "model" / "params.npz") as arrays:
        return dict(arrays)


def test_a_run_leaves_what_the_design_says(tmp_path, monkeypatch):
    config = make_config(tmp_path / "run", **{"run.trackers": ["tensorboard"]})
    monkeypatch.setattr(curves, "draw", draw)
    job = build(config)
    summary = loop.run(job, config)
    directory = tmp_path / "run"
    assert {p.name for p in directory.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "tensorboard", "curves.png", "checkpoints", "model"),
        *("report.txt", "summary.json", ".lock"),
    }
    assert (directory / "config.yaml").read_text() == to_yaml(config)
    assert json.loads((directory / "summary.json").read_text()) == summary
    assert {
        "train/real_tokens_per_second",
        "train/padded_tokens_per_second",
        "train/steps",
        "train/wall_seconds",
        "train/compile_seconds",
        "train/peak_host_memory_bytes",
        "eval/loss",
        "eval/score",
    } <= summary.keys()
    assert summary["train/steps"] == 18
    assert 0 < summary["train/compile_seconds"] < summary["train/wall_seconds"]
    ratio = summary["train/real_tokens_per_second"] / summary["train/padded_tokens_per_second"]
    assert ratio == pytest.approx(0.9)
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((directory / "tensorboard").iterdir())
    steps = records(directory, "step", "epoch", "learning_rate")
    assert [s[:2] for s in steps] == [(4, 0.6667), (8, 1.3333), (12, 2), (16, 2.6667), (18, 3)]
    assert [s[2] for s in steps] == pytest.approx([0.097, 0.093, 0.089, 0.085, 0.083])
    keys = ("step", "loss", "grad_norm", "real_tokens_per_second", "padded_tokens_per_second")
    assert len(records(directory, *keys)) == 5
    assert [s for (s,) in records(directory, "step")] == [4, 6, 8, 12, 12, 16, 18, 18]
    assert [s for s, _ in records(directory, "step", "eval/loss")] == [6, 12, 18]
    assert job.loader.open_iterators == 0


def test_the_logged_loss_is_the_mean_since_the_last_log_line(tmp_path):
    for every in (1, 4):
        config = make_config(tmp_path / str(every), **{"run.log_every": every})
        loop.run(build(config), config)
    single = [x for (x,) in records(tmp_path / "1", "loss")]
    assert len(single) == 18
    means = [np.mean(single[i : i + 4]) for i in range(0, 18, 4)]
    assert [x for (x,) in records(tmp_path / "4", "loss")] == pytest.approx(means)


def test_a_step_is_dispatched_before_the_one_before_it_is_read(tmp_path, monkeypatch):
    events = []
    get = jax.device_get

    def device_get(metrics):
        events.append("read")
        return get(metrics)

    config = make_config(tmp_path, **{"train.steps": 5, "train.eval_every": 5})
    job = build(config, before_step=lambda step: events.append(step))
    monkeypatch.setattr(jax, "device_get", device_get)
    loop.run(job, config)
    assert events == [1, 2, "read", 3, "read", 4, "read", 5, "read", "read"]


def test_the_best_model_is_exported_and_patience_stops(tmp_path):
    scores = [0.1, 0.3, 0.3, 0.2, 0.9, 0.2]
    config = make_config(tmp_path, **{"train.steps": 60, "train.patience": 2, "run.keep": 1})
    summary = loop.run(build(config, scores=scores), config)
    assert summary["train/steps"] == 4 * STEPS_IN_EPOCH
    assert summary["train/best_step"] == 2 * STEPS_IN_EPOCH
    assert summary["eval/score"] == 0.3
    # The same parameters as those of a run that ends there.
    other = make_config(tmp_path / "short", **{"train.steps": 12})
    loop.run(build(other), other)
    best, end = exported(tmp_path), exported(tmp_path / "short")
    assert all(np.array_equal(best[k], end[k]) for k in end)
    # The report is on them, too: the snapshot of the best step outlived `keep`.
    report = (tmp_path / "report.txt").read_text()
    assert report.startswith("step 12: ")
    assert report == (tmp_path / "short" / "report.txt").read_text()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000012", "step_00000024"]


def test_without_evaluation_the_last_model_is_exported(tmp_path):
    config = make_config(tmp_path, **{"train.patience": 1})
    job = build(config)
    job.evaluate = lambda params: {}
    summary = loop.run(job, config)
    assert not [key for key in summary if key.startswith("eval/")]
    params = exported(tmp_path)
    state = last_state(tmp_path)
    assert np.array_equal(params["['linear|w']"], state[".params['linear|w']"])


@pytest.mark.parametrize(
    ("eval_every", "save_every", "evaluated", "saved"),
    [
        (0, 0, [6, 12, 14], [6, 12, 14]),
        (5, 0, [5, 10, 14], [5, 10, 14]),
        (0, 4, [6, 12, 14], [4, 6, 8, 12, 14]),
        (100, 4, [14], [4, 8, 12, 14]),
    ],
)
def test_when_it_evaluates_and_saves(tmp_path, eval_every, save_every, evaluated, saved):
    changes = {"train.steps": 14, "train.eval_every": eval_every, "train.save_every": save_every}
    config = make_config(tmp_path, **changes, **{"run.keep": 99})
    scores = [0.3, 0.2, 0.1, 0.0]  # later ones are not the best, and not saved for that
    if save_every and eval_every == 0:
        scores = [0.1, 0.2, 0.3, 0.4]
    loop.run(build(config, scores=scores), config)
    assert [s for s, _ in records(tmp_path, "step", "eval/loss")] == evaluated
    found = sorted((tmp_path / "checkpoints").iterdir())
    assert [int(p.name.removeprefix("step_")) for p in found] == saved


def test_an_unknown_metric_is_an_input_error(tmp_path):
    config = make_config(tmp_path, **{"train.metric": "bleu"})
    with pytest.raises(InputError, match=r"train\.metric: 'bleu'.*'loss', 'score'"):
        loop.run(build(config), config)


@pytest.mark.parametrize("poison", [9, 12, 18])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, poison):
    config = make_config(tmp_path)
    job = build(config, poison=poison)
    with pytest.raises(loop.RunError) as error:
        loop.run(job, config)
    last = (poison - 1) // 6 * 6
    batches = build(config).loader.batches(toy_run.LoaderState(0, 0))
    rows = sorted(int(x) for x in next(itertools.islice(batches, poison - 1, None)).example_rows)
    message = str(error.value)
    assert f"loss nan at step {poison}" in message
    assert f"rows {rows}" in message
    assert str(tmp_path / "checkpoints" / f"step_{last:08d}") in message
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir())[-1] == f"step_{last:08d}"
    assert np.isfinite(last_state(tmp_path)[".params['linear|w']"]).all()
    assert not (tmp_path / "summary.json").exists()
    assert job.loader.open_iterators == 0


def test_several_seeds(tmp_path, caplog):
    config = make_config(tmp_path, **{"run.seeds": [1, 2, 3], "train.steps": 6})
    built = []

    def one(seed_config):
        built.append(seed_config.train.seed)
        return build(seed_config)

    with caplog.at_level(logging.INFO, "jaxllm"):
        summary = loop.train(config, one)
    told = f"3 seeds: eval/loss {summary['eval/loss']:.4f} ± {summary['eval/loss_std']:.4f}"
    assert told in caplog.text
    each = [json.loads((tmp_path / f"seed_{n}" / "summary.json").read_text()) for n in (1, 2, 3)]
    losses = [s["eval/loss"] for s in each]
    assert len(set(losses)) == 3
    assert summary["eval/loss"] == pytest.approx(np.mean(losses))
    assert summary["eval/loss_std"] == pytest.approx(np.std(losses, ddof=1))
    assert summary["train/seeds"] == 3
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    more = dataclasses.replace(config, run=dataclasses.replace(config.run, seeds=[1, 2, 3, 4]))
    assert loop.train(more, one)["train/seeds"] == 4
    assert built == [1, 2, 3, 4]  # those that were finished were left alone


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, signum):
    config = make_config(tmp_path)

    def before_step(step):
        if step == 8:
            signal.raise_signal(signum)

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    job = build(config, before_step=before_step)
    with pytest.raises(Interrupted) as stop:
        loop.run(job, config)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert (stop.value.signum, stop.value.exit_status) == (signum, 128 + signum)
    assert "after step 8 of 18" in str(stop.value)
    assert f"jaxllm train --config {tmp_path / 'config.yaml'}" in str(stop.value)
    assert last_state(tmp_path)[".step"] == 8
    assert job.loader.open_iterators == 0
    loop.run(build(config), config)
    whole = make_config(tmp_path / "whole")
    loop.run(build(whole), whole)
    assert_same_state(tmp_path, tmp_path / "whole")


def assert_same_state(one: Path, two: Path) -> None:
    a, b = last_state(one), last_state(two)
    assert a.keys() == b.keys()
    different = [k for k in a if not np.array_equal(a[k], b[k])]
    assert not different
    keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    assert records(one, *keys) == records(two, *keys)
    keys = ("step", "eval/loss", "eval/score")
    assert records(one, *keys) == records(two, *keys)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    # A shell starts what it runs in the background with SIGINT ignored, the tests too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def before_step(step):
        if step == 8:
            signal.raise_signal(signal.SIGINT)  # its handler has run when this returns
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("still here")

    config = make_config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        loop.run(build(config, before_step=before_step), config)
    assert last_state(tmp_path)[".step"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_no_handler_is_set(tmp_path):
    config = make_config(tmp_path)
    seen: list = []
    job = build(config, before_step=lambda step: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=loop.run, args=(job, config))
    thread.start()
    thread.join()
    assert set(seen) == {signal.SIG_DFL}
    assert (tmp_path / "summary.json").exists()


def test_the_progress_bar_shows_loss_rate_and_tokens(tmp_path, monkeypatch, capsys):
    import tqdm

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": False, "mininterval": 0.0})

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    config = make_config(tmp_path, **{"run.progress": True})
    loop.run(build(config), config)
    first, second, *_, shown = capsys.readouterr().err.strip("\r").split("\r")
    assert first.startswith("epoch 0.00/3:")
    assert "compiling …" in second
    assert shown.startswith("epoch 3.00/3:")
    assert "18/18" in shown
    assert "loss 0." in shown
    assert "lr 8.30e-02" in shown
    assert "tokens/s" in shown
