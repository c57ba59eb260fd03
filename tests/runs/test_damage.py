"""A run's own files, damaged: one message each, nothing lost without a word, and a way out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_run import build, last_state, make_config

from jaxllm.errors import InputError
from jaxllm.runs import curves, loop, summary
from jaxllm.runs.log import read_records
from jaxllm.tasks.evaluate import write_report

DAMAGES = {
    "empty": b"",
    "cut": b'{"train/steps": 18, "step": 4, "ev',
    "binary": bytes(range(256)),
    "utf16": '{"step": 4, "train/steps": 18}'.encode("utf-16"),
    "deep": b"[" * 5000 + b"]" * 5000 + b"\n",
    "list": b"[1, 2]\n",
    "text": b'"step"\n',
    "value": b'{"train/steps": [18], "step": "4"}\n',
    "nothing": b"{}\n",
}


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)


def built_again(config):
    raise AssertionError("built again")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 12 steps."""
    directory = tmp_path_factory.mktemp("damage") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", lambda *_, **__: None)
        loop.run(build(make_config(directory, **STEPS)), make_config(directory, **STEPS))
    return directory


STEPS = {"train.steps": 12}


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_summary(run, damage):
    (run / "summary.json").write_bytes(damage)
    config = make_config(run, **STEPS)
    with pytest.raises(InputError) as error:
        loop.train(config, built_again)
    message = str(error.value)
    assert message.startswith(f"{run / 'summary.json'}: ")
    assert "expected the numbers of a finished run; delete it and run the same command" in message
    (run / "summary.json").unlink()
    assert loop.run(build(config), config)["train/steps"] == 12  # the way out


def test_a_summary_that_cannot_be_read(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(InputError, match=r"cannot be read .*directory"):
        summary.read(tmp_path / "summary.json")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_of_metrics(run, damage):
    (run / "summary.json").unlink()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], damage.rstrip(b"\n"), b"\n", *lines[1:]]))
    config = make_config(run, **STEPS)
    if not damage:  # a blank line holds no record
        assert loop.run(build(config), config)["train/steps"] == 12
        return
    before = metrics.read_bytes()
    with pytest.raises(InputError) as error:
        loop.run(build(config), config)
    assert str(error.value).startswith(f"line 2 of {metrics}: is damaged (")
    assert "move it away and run the same command again" in str(error.value)
    assert metrics.read_bytes() == before
    metrics.rename(run / "away")
    assert loop.run(build(config), config)["train/steps"] == 12


@pytest.mark.parametrize("rest", [b'{"step": 16, "lo', b"\0" * 300, b"\xff", b"17"])
def test_a_line_that_a_crash_cut_off_is_told_and_left_out(run, rest, caplog):
    metrics = run / "metrics.jsonl"
    before = read_records(metrics)
    metrics.write_bytes(metrics.read_bytes() + rest)
    assert read_records(metrics) == before
    assert f"{metrics}: line {len(before) + 1} was cut off; it is left out" in caplog.text


@pytest.mark.parametrize("kept", [0, 3])
def test_records_that_are_gone_are_told(run, kept, caplog):
    (run / "summary.json").unlink()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5  # at steps 4, 6, 8, 12 and the evaluation of 12
    metrics.write_bytes(b"".join(lines[:kept]))
    config = make_config(run, **STEPS)
    assert loop.run(build(config), config)["train/steps"] == 12
    told = f"holds {kept} of the 5 records that were written up to step 12; the others are lost"
    assert told in caplog.text
    assert metrics.read_bytes() == b"".join(lines[:kept])


def test_a_whole_log_is_not_remarked_on(run, caplog):
    (run / "summary.json").unlink()
    config = make_config(run, **STEPS)
    loop.run(build(config), config)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


CONFIGS = {
    **{name: x for name, x in DAMAGES.items() if name not in ("empty", "nothing")},
    "empty": b"",
    "deep": b"[" * 900,
    "date": b"run: {dir: 2020-99-99}",
    "key": b"? [a]\n: b\n",
    "flat": b"a: 1\n",
    "laughs": b"model: &m {config: *m}",
}


@pytest.mark.parametrize("damage", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config_of_a_run(run, damage):
    (run / "config.yaml").write_bytes(damage)
    with pytest.raises(InputError) as error:
        loop.train(make_config(run, **STEPS), built_again)
    message = str(error.value)
    assert str(run / "config.yaml") in message
    assert "another run.dir" in message
    assert len(message) < 2000
    assert (run / "config.yaml").read_bytes() == damage


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_description_of_a_snapshot(run, damage):
    (run / "summary.json").unlink()
    (run / "checkpoints/step_00000012/jaxllm.json").write_bytes(damage)
    config = make_config(run, **STEPS)
    with pytest.raises(InputError, match=r"step_00000012 is damaged .*goes on from step 6"):
        loop.run(build(config), config)
    shutil.rmtree(run / "checkpoints/step_00000012")
    assert loop.run(build(config), config)["train/steps"] == 12


def test_any_file_of_a_snapshot_damaged_is_told_or_harmless(run):
    """Each file, cut and with other bytes: never another state, never another exception."""
    snapshot = run / "checkpoints/step_00000012"
    state = last_state(run)
    for file in sorted(p for p in snapshot.rglob("*") if p.is_file()):
        content = file.read_bytes()
        half = len(content) // 2
        for damage in (content[:half], content[:half] + bytes(255 - x for x in content[half:])):
            file.write_bytes(damage)
            if file.name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
                found = last_state(run)  # Orbax's own marks, which hold nothing of the state
                assert not [k for k in state if not np.array_equal(state[k], found[k])]
            else:
                with pytest.raises(InputError, match="step_00000012 is damaged"):
                    last_state(run)
        file.write_bytes(content)


def test_a_report_on_a_model_whose_name_is_not_utf_8(tmp_path):
    text = write_report(tmp_path, "models/a\udcff", "accuracy 1.0\n")
    assert text.startswith("model models/a\\udcff, 2")
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == text
