"""Several processes that train together: the same numbers as one, one writer, one end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ports import free_address

import jaxllm
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.config.reading import to_yaml
from jaxllm.errors import InputError
from jaxllm.runtime import processes

COMMAND = [sys.executable, "-m", "jaxllm", "train", "--config"]
LIBRARY = str(Path(jaxllm.__file__).parents[1])


@pytest.fixture(scope="module")
def config_file(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    """A tiny BERT with dropout on files that are named relative to the working directory."""
    directory = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "plot", "not", "very", "the", "was"])
    rows = [f"{' '.join(rng.choice(words, rng.integers(2, 12)))},{i % 2}" for i in range(96)]
    (directory / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (directory / "dev.csv").write_text("text,label\n" + "\n".join(rows[:33]) + "\n")
    names = (
        *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "max_position_embeddings"),
    )
    attributes = {name: getattr(tiny_bert_config, name) for name in names}
    attributes["num_hidden_layers"] = 1  # half as long to compile
    attributes["vocab_size"] = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    config = Config(
        model=ModelConfig(config=attributes, tokenizer=str(tiny_tokenizer_dir)),
        data=DataConfig(
            *(["train.csv"], ["dev.csv"]), max_length=32, cache_dir=str(directory / "cache")
        ),
        train=TrainConfig(batch_size=16, epochs=10, save_every=20, eval_every=35),
        run=RunConfig(trackers=[], progress=False, log_every=5),
    )
    (directory / "run.yaml").write_text(to_yaml(config))
    return directory / "run.yaml"


def start(config_file, run_dir, *options, devices=1, directory=None, together=()):
    """A process of the run in `run_dir` that has `devices`; its log is beside the directory."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": LIBRARY,
        **dict(together),
    }
    log = f"{run_dir}.{environment.get(processes.INDEX, 'one')}.log"
    command = [*COMMAND, str(config_file), "--run.dir", str(run_dir), *options]
    with open(log, "w") as file:
        return subprocess.Popen(
            command, stderr=file, env=environment, cwd=directory or config_file.parent
        )


@contextlib.contextmanager
def two(config_file, run_dir, *options, directories=(None, None)):
    """Two processes of one device each, ended at the end whatever has happened."""
    address = free_address()
    started = [
        start(
            *(config_file, run_dir, "--mesh.processes", "2", *options),
            directory=directory,
            together={processes.ADDRESS: address, processes.COUNT: "2", processes.INDEX: str(i)},
        )
        for i, directory in enumerate(directories)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def logs(run_dir):
    return [Path(f"{run_dir}.{i}.log").read_text() for i in (0, 1)]


def statuses(started, run_dir):
    deadline = time.monotonic() + 600
    for process in started:
        try:
            process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            pytest.fail("\n".join(logs(run_dir)))
    return [process.returncode for process in started]


def wait_for_a_snapshot(started, run_dir):
    deadline = time.monotonic() + 600
    while not list(run_dir.glob("checkpoints/step_????????/jaxllm.json")):
        assert time.monotonic() < deadline, logs(run_dir)
        assert [p.poll() for p in started] == [None, None], logs(run_dir)
        time.sleep(0.01)


def one_process(config_file, run_dir, *options):
    """A run in one process with two devices."""
    assert start(config_file, run_dir, *options, devices=2).wait() == 0, run_dir
    return run_dir


def assert_same_run(run_dir, other):
    for name in ("model/model.safetensors", "predictions.jsonl"):
        assert (run_dir / name).read_bytes() == (other / name).read_bytes(), name
    reports = [(directory / "report.txt").read_text() for directory in (run_dir, other)]
    # The first line has the directory and the date.
    assert reports[0].partition("\n")[2] == reports[1].partition("\n")[2] != ""
    records = [
        [
            {k: x for k, x in json.loads(line).items() if "second" not in k}
            for line in (directory / "metrics.jsonl").read_text().splitlines()
        ]
        for directory in (run_dir, other)
    ]
    assert records[0] == records[1]


@pytest.mark.slow
def test_killed_and_continued_over_fsdp_is_one_process_bit_for_bit(config_file, tmp_path):
    options = ("--mesh.fsdp", "2")
    with two(config_file, tmp_path / "run", *options) as started:
        wait_for_a_snapshot(started, tmp_path / "run")
        for process in started:
            process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "run" / "summary.json").exists()
    with two(config_file, tmp_path / "run", *options) as started:
        assert statuses(started, tmp_path / "run") == [0, 0], logs(tmp_path / "run")
    first, second = logs(tmp_path / "run")
    assert "going on after step" in first
    assert "INFO" not in second  # what all do is said once
    assert_same_run(tmp_path / "run", one_process(config_file, tmp_path / "one", *options))


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_one_process_goes_on(config_file, tmp_path):
    run_dir = tmp_path / "run"
    with two(config_file, run_dir) as started:
        wait_for_a_snapshot(started, run_dir)
        started[1].send_signal(signal.SIGTERM)
        assert statuses(started, run_dir) == [143, 143], logs(run_dir)
    saved = max(run_dir.glob("checkpoints/step_*")).name
    for log in logs(run_dir):
        assert f"stopped after step {int(saved.removeprefix('step_'))} of" in log
    # As many devices, but in one process: the same mesh, so the same bits.
    one_process(config_file, run_dir)
    assert_same_run(run_dir, one_process(config_file, tmp_path / "one"))


@pytest.mark.slow
def test_a_process_without_the_files_or_with_others_stops_all(config_file, tmp_path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text((config_file.parent / "train.csv").read_text())
    options = ("--data.dev", "[]")
    directories = (tmp_path / "0", tmp_path / "1")
    with open(tmp_path / "1" / "train.csv", "a") as file:
        file.write("one more,1\n")
    with two(config_file, tmp_path / "run", *options, directories=directories) as started:
        assert statuses(started, tmp_path / "run") == [2, 2]
    for log in logs(tmp_path / "run"):
        assert "error: the examples of data.train: differ between process 0 and processes" in log
    (tmp_path / "1" / "train.csv").unlink()
    with two(config_file, tmp_path / "run", *options, directories=directories) as started:
        assert statuses(started, tmp_path / "run") == [2, 2]
    first, second = logs(tmp_path / "run")
    assert "jaxllm: error: process 1 stopped; it says why" in first
    assert "jaxllm: error: train.csv: no such file" in second
    assert "Traceback" not in first + second


VARIABLES = {processes.ADDRESS: "host:1234", processes.COUNT: "2", processes.INDEX: "1"}


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        (3, {}, "mesh.processes: found 3, but 2 processes were started; set it to 2, or to -1"),
        (1, {}, "mesh.processes: found 1, but 2 processes were started"),
        (2, {processes.INDEX: "2"}, "JAX_PROCESS_ID=2; expected JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        (2, {processes.COUNT: "two"}, "JAX_NUM_PROCESSES=two"),
        (2, {processes.INDEX: None}, "the environment has JAX_COORDINATOR_ADDRESS=host:1234, JAX_"),
        (2, {processes.ADDRESS: "host"}, "JAX_COORDINATOR_ADDRESS=host,"),
    ],
)
def test_a_wrong_number_or_half_a_description_is_refused(monkeypatch, wanted, changes, message):
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **_: None)
    environment = {k: x for k, x in {**VARIABLES, **changes}.items() if x is not None}
    with pytest.raises(InputError) as error:
        processes.join(wanted, environment)
    assert message in str(error.value)


@pytest.mark.parametrize("environment", [VARIABLES, {}])
def test_the_variables_are_handed_on_or_jax_looks_for_itself(monkeypatch, environment):
    given = {}
    monkeypatch.setattr(processes.jax.distributed, "initialize", given.update)
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    processes.join(-1, environment)
    expected = {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1}
    assert given == (expected if environment else {})


def test_no_others_to_be_found_is_an_input_error(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="found 4, but the other processes were not found"):
        processes.join(4, {})


def test_one_process_alone_asks_nobody(monkeypatch):
    monkeypatch.setattr(processes.jax.distributed, "initialize", None)
    processes.join(1, {})
    with processes.together():
        pass
    processes.check_same("nothing", lambda: pytest.fail("asked"))


def test_more_processes_than_expected_are_refused(monkeypatch):
    monkeypatch.setattr(processes.jax, "process_count", lambda: 4)
    with pytest.raises(InputError, match="found 1, but 4 processes were started"):
        processes.join(1, {})
