"""kill -9 in the middle of a real fine-tuning run, and the same command again."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.config.reading import to_yaml

CODE = "import sys; from jaxllm.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def config_file(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    """A tiny BERT with dropout, from random weights: 120 steps, a snapshot each 20."""
    directory = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "plot", "not", "very", "the", "was"])
    rows = [f"{' '.join(rng.choice(words, rng.integers(2, 12)))},{i % 2}" for i in range(96)]
    (directory / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    attributes = {
        name: getattr(tiny_bert_config, name)
        for name in (
            *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("intermediate_size", "max_position_embeddings"),
        )
    }
    attributes["vocab_size"] = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    config = Config(
        model=ModelConfig(config=attributes, tokenizer=str(tiny_tokenizer_dir)),
        data=DataConfig(
            train=[str(directory / "train.csv")], max_length=32, cache_dir=str(directory / "cache")
        ),
        train=TrainConfig(batch_size=16, epochs=30, save_every=20),
        run=RunConfig(trackers=[], progress=False, log_every=1),
    )
    (directory / "run.yaml").write_text(to_yaml(config))
    return directory / "run.yaml"


def start(config_file, run_dir):
    command = [sys.executable, "-c", CODE, "train", "--config", str(config_file)]
    with open(f"{run_dir}.log", "w") as log:
        return subprocess.Popen([*command, "--run.dir", str(run_dir)], stderr=log)


def losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


def test_killed_and_continued_is_bit_for_bit_uninterrupted(config_file, tmp_path):
    whole = start(config_file, tmp_path / "whole")
    assert whole.wait() == 0, (tmp_path / "whole.log").read_text()

    broken = start(config_file, tmp_path / "broken")
    deadline = time.monotonic() + 600
    while not list((tmp_path / "broken" / "checkpoints").glob("step_????????/jaxllm.json")):
        assert time.monotonic() < deadline
        assert broken.poll() is None, (tmp_path / "broken.log").read_text()
        time.sleep(0.01)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    assert not (tmp_path / "broken" / "summary.json").exists()

    again = start(config_file, tmp_path / "broken")
    status, said = again.wait(), (tmp_path / "broken.log").read_text()
    assert status == 0, said
    assert "going on after step" in said
    weights = [tmp_path / run / "model" / "model.safetensors" for run in ("whole", "broken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
