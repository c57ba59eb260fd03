"""What a run says at a terminal and in a log that is none."""

import logging
import time
import types

import pytest
from toy_run import build, make_config

from jaxllm.runs import curves, loop
from jaxllm.runs.log import RunLog, read_records
from jaxllm.runs.progress import Progress


@pytest.fixture
def said(caplog):
    """The lines of the log so far."""
    caplog.set_level(logging.INFO, "jaxllm")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def log(tmp_path):
    """A RunLog of 100 steps over 2 epochs, without a bar, that begins after step 10."""
    config = make_config(tmp_path, **{"train.epochs": 2.0})
    directory = types.SimpleNamespace(path=tmp_path, writer=True, config=config)
    with RunLog(directory, Progress(step=10), 100) as opened:
        yield opened


STEP = {"loss": 0.5, "learning_rate": 1e-3, "real_tokens_per_second": 1234.0}


def test_a_log_line_has_epoch_and_the_time_left(log, said, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log.tick()  # the first step, which compiled, counts for nothing
    log.step({"step": 11, "epoch": 0.22, **STEP})
    for _ in range(9):
        now[0] += 3
        log.tick()
    now[0] += 63  # an evaluation is time, too: 10 s a step
    log.step({"step": 20, "epoch": 0.4, **STEP})
    log.step({"step": 100, "epoch": 2.0, **STEP})
    rest = "loss 0.5000 lr 1.00e-03 1,234 tokens/s"
    assert said() == [
        f"step 11/100, epoch 0.22/2: {rest}",
        f"step 20/100, epoch 0.40/2, 13:20 left: {rest}",
        f"step 100/100, epoch 2.00/2: {rest}",
    ]


def evaluated(log, values, *, metric="f1_macro", **progress):
    record = {"step": 20, "epoch": 0.4, **{f"eval/{name}": x for name, x in values.items()}}
    log.evaluation(record, metric, Progress(step=20, **progress))


def test_the_evaluation_line_has_the_metric_the_best_the_loss_and_no_doubles(log, said, tmp_path):
    values = {"accuracy": 0.75, "f1": 0.7, "f1_macro": 0.7, "f1_micro": 0.75}
    values |= {"roc_auc": 0.9, "f1/good": 0.8, "f1/bad": 0.6, "loss": 0.25}
    evaluated(log, values, best=0.7, best_step=20)
    evaluated(log, values, best=0.8, best_step=12)
    evaluated(log, values, best=None)
    evaluated(log, values, metric="loss", best=0.2, best_step=8)
    evaluated(log, values, metric="f1/bad", best=0.6, best_step=20)
    rest, f1 = "loss 0.2500, accuracy 0.7500, roc_auc 0.9000", "accuracy 0.7500, f1 0.7000"
    assert said() == [
        f"step 20/100: dev f1_macro 0.7000 (the best so far), {rest}",
        f"step 20/100: dev f1_macro 0.7000 (best 0.8000 at step 12), {rest}",
        f"step 20/100: dev f1_macro 0.7000, {rest}",
        f"step 20/100: dev loss 0.2500 (best 0.2000 at step 8), {f1}, roc_auc 0.9000",
        f"step 20/100: dev f1/bad 0.6000 (the best so far), loss 0.2500, {f1}, roc_auc 0.9000",
    ]
    (first, *_) = read_records(tmp_path / "metrics.jsonl")
    assert {name[5:] for name in first if name.startswith("eval/")} == values.keys()


@pytest.mark.parametrize(
    ("patience", "scores", "expected"),
    [
        (1, [0.1, 0.3, 0.3], "score no better in 1 evaluation, best at step 12"),
        (2, [0.1, 0.3, 0.3, 0.2], "score no better in 2 evaluations, best at step 12"),
        (1, [float("nan")], "score no better in 1 evaluation, and never a number"),
        (3, [0.3, 0.2, 0.1], None),  # the end of the run is no early stop
    ],
)
def test_an_early_stop_is_told(tmp_path, monkeypatch, said, patience, scores, expected):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)
    steps = 18 if expected is None else 60
    config = make_config(tmp_path, **{"train.steps": steps, "train.patience": patience})
    loop.run(build(config, scores=[*scores, 0.0]), config)  # one for the report
    stops = [line for line in said() if line.startswith("Early stop")]
    assert stops == ([] if expected is None else [f"Early stop: {expected}"])


def test_mfu_stands_beside_tokens_per_second_where_the_peak_is_known(tmp_path, monkeypatch, said):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)
    config = make_config(tmp_path, **{"train.steps": 4})
    job = build(config)
    job.peak_rate = 1e5
    summary = loop.run(job, config)
    (record,) = [r for r in read_records(tmp_path / "metrics.jsonl") if "loss" in r]
    assert record["mfu"] == record["real_tokens_per_second"] / 1e5
    assert summary["train/mfu"] == summary["train/real_tokens_per_second"] / 1e5
    assert f" tokens/s MFU {record['mfu']:.1%}" in said()[1]
    unknown = make_config(tmp_path / "cpu", **{"train.steps": 4})
    assert "train/mfu" not in loop.run(build(unknown), unknown)
    assert "MFU" not in said()[-2]


def test_compiling_is_told_and_only_then(tmp_path, monkeypatch, said):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)
    told = []
    config = make_config(tmp_path, **{"train.steps": 3, "run.log_every": 1})
    job = build(config, before_step=lambda step: told.append(said().count("compiling …")))
    loop.run(job, config)
    assert told == [1, 1, 1]
    assert said()[0] == "compiling …"
