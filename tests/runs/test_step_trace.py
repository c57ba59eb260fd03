"""train.profile: which steps are in the trace, and what it costs."""

import gzip
import json
import time

import jax
import pytest
from toy_run import build, make_config

from jaxllm.config import reading
from jaxllm.errors import InputError
from jaxllm.runs import curves, loop


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(curves, "draw", lambda *_, **__: None)


@pytest.fixture
def events(monkeypatch):
    """Starts, steps and stops in their order; the profiler itself is not called."""
    seen: list = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: seen.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    return seen


def test_a_trace_holds_the_steps_of_metrics_jsonl(tmp_path):
    one = make_config(tmp_path, **{"train.profile": [3, 5], "train.steps": 6})
    loop.run(build(one), one)
    (file,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    traced = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    marked = [event["args"]["step_num"] for event in traced if event.get("name") == "train"]
    assert marked == ["3", "4", "5"]
    calls = [event for event in traced if event.get("name", "").endswith(" train_step")]
    assert len(calls) == 3
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_steps_around_are_not_in_it(tmp_path, events, monkeypatch):
    get = jax.device_get

    def device_get(metrics):
        events.append("read")
        return get(metrics)

    monkeypatch.setattr(jax, "device_get", device_get)
    one = make_config(tmp_path, **{"train.profile": [3, 4], "train.steps": 6})
    loop.run(build(one, before_step=events.append), one)
    inside = events[events.index("start") : events.index("stop") + 1]
    assert inside == ["start", 3, 4, "read", "read", "stop"]
    assert events[: events.index("start")] == [1, 2, "read", "read"]


def test_what_the_trace_takes_is_not_training(tmp_path, monkeypatch):
    late, clock = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])

    def take(*_):
        late[0] += 1e6

    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, take)
    one = make_config(tmp_path, **{"train.profile": [2, 5], "train.steps": 6})
    summary = loop.run(build(one), one)
    assert summary["train/wall_seconds"] > 2e6
    assert 6 * 36 / summary["train/real_tokens_per_second"] < 1e6
    assert summary["train/step_seconds_p99"] < 1e6


def test_a_run_that_ends_within_writes_its_trace_and_goes_on_with_the_rest(tmp_path, events):
    one = make_config(tmp_path, **{"train.profile": [5, 9], "train.steps": 12})

    def stop(step):
        events.append(step)
        if step == 8 and events.count(8) == 1:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        loop.run(build(one, before_step=stop), one)
    assert events == [1, 2, 3, 4, "start", 5, 6, 7, 8, "stop"]
    del events[:]
    loop.run(build(one, before_step=events.append), one)
    assert events == ["start", 7, 8, 9, "stop", 10, 11, 12]


def test_no_profile_no_profiler(tmp_path, events):
    one = make_config(tmp_path, **{"train.steps": 2})
    loop.run(build(one), one)
    assert events == []


@pytest.mark.parametrize("steps", ["[10]", "[0, 3]", "[5, 4]", "[1, 2, 3]", "[]"])
def test_what_is_no_range_is_refused(steps):
    options = ["--model.path", "w", "--data.train", "[a.csv]", "--train.profile", steps]
    with pytest.raises(InputError, match=r"train\.profile: found .* such as \[10, 15\]"):
        reading.load(options)


def test_steps_that_the_run_does_not_have_are_told_before_it_trains(tmp_path, events):
    one = make_config(tmp_path, **{"train.profile": [5, 9], "train.steps": 8})
    with pytest.raises(InputError, match=r"train\.profile: found \[5, 9\], but the run has 8"):
        loop.run(build(one, before_step=events.append), one)
    assert events == []
