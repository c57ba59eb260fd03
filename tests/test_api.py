"""`jaxllm.train` and `jaxllm.evaluate`: the commands as functions, one configuration for both."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import jaxllm
from jaxllm import cli
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.config.reading import changed, from_yaml, to_yaml
from jaxllm.errors import InputError

ROWS = [
    {"text": text, "label": label} for text, label in [("we loved it", "good"), ("it broke", "bad")]
]


@pytest.fixture(scope="module")
def file(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    """The configuration of a run of two steps, as a file."""
    directory = tmp_path_factory.mktemp("api")
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in 4 * ROWS))
    config = changed(
        Config(),
        {
            "model": {
                "path": None,
                "tokenizer": tiny_tokenizer_dir,
                "config": {**tiny_bert_config.to_diff_dict(), "vocab_size": 200},
            },
            "data": {"train": (rows,), "dev": [rows], "max_length": 16, "buckets": [16]},
            "train": {"batch_size": 8, "eval_batch_size": 8, "steps": 2},
            "run": {"dir": directory / "first", "trackers": []},
            "data.cache_dir": str(directory / "cache"),
        },
    )
    assert config.data.train == [str(rows)]
    path = directory / "config.yaml"
    path.write_text(to_yaml(config))
    return path


@pytest.fixture(scope="module")
def trained(file):
    return jaxllm.train(file)


def test_a_run_of_python_is_a_run_of_the_command_line(file, trained, tmp_path, capsys):
    run = Path(from_yaml(file).run.dir)
    assert trained == json.loads((run / "summary.json").read_text())
    directory = tmp_path / "other"
    arguments = ["--config", str(file), "--run.dir", str(directory)]
    assert cli.main(["train", *arguments]) == 0
    weights = "model/model.safetensors"
    assert (directory / weights).read_bytes() == (run / weights).read_bytes()
    saved = {"model": {"path": run / "model", "config": {}}}
    metrics = jaxllm.evaluate(str(file), run={"dir": tmp_path / "judged"}, **saved)
    capsys.readouterr()
    arguments += ["--model.path", str(run / "model"), "--model.config", "{}"]
    assert cli.main(["evaluate", *arguments]) == 0
    assert metrics == json.loads(capsys.readouterr().out)
    assert metrics["accuracy"] == trained["eval/accuracy"]


def test_a_finished_run_is_left_and_goes_on_where_more_is_asked_for(file, trained, caplog):
    assert jaxllm.train(from_yaml(file)) == trained
    with caplog.at_level(logging.INFO, "jaxllm"):
        jaxllm.train(file, **{"train.steps": 3})
    assert "step 3" in caplog.text


def test_fields_are_changed_by_section_and_by_key():
    config = Config(ModelConfig(path="c"), DataConfig(train=["a"]), run=RunConfig(dir="b"))
    new = changed(config, {"data": {"max_length": 64}, "optimizer.learning_rate": 1, "run": {}})
    assert (new.data.train, new.data.max_length, new.run.dir) == (["a"], 64, "b")
    assert (new.optimizer.learning_rate, config.data.max_length) == (1.0, DataConfig().max_length)
    assert changed(new, {}) == new


def test_numbers_and_arrays_of_numpy_and_jax_are_those_of_python():
    changes = {
        "train": {"steps": np.int64(3), "seed": jnp.array(4), "class_weights": np.ones(2)},
        "optimizer": {"learning_rate": np.float32(0.5)},
        "model": {"path": np.str_("c"), "config": {"hidden_size": np.int64(8)}},
        "data": {"train": np.array(["a", "b"]), "train_split": Path("c")},
    }
    new = changed(Config(), changes)
    assert new.train == TrainConfig(steps=3, seed=4, class_weights=[1.0, 1.0])
    assert (new.optimizer.learning_rate, new.model.config) == (0.5, {"hidden_size": 8})
    assert new.data == DataConfig(train=["a", "b"], train_split="c")
    assert yaml.safe_load(to_yaml(new))["train"]["steps"] == 3


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": TrainConfig(steps="3")}, r'train\.steps: found "3", expected a whole number'),
        ({"train": TrainConfig(batch_size=None)}, r"train\.batch_size: found null, expected"),
        ({"train": None}, "train: found null, expected a TrainConfig"),
        ({"train": {"steps": 3}}, r'train: found \{"steps": 3\}, expected a TrainConfig'),
        ({"data": DataConfig(train="a.csv")}, r'data\.train: found "a\.csv", expected a list'),
        ({"model": ModelConfig(task="tag")}, r'model\.task: found "tag", expected one of sequence'),
    ],
)
def test_what_a_config_holds_is_checked_as_a_file_is(sections, message):
    with pytest.raises(InputError, match=message):
        jaxllm.train(replace(Config(model=ModelConfig(path="c")), **sections))


WITHIN_ITSELF: dict = {}
WITHIN_ITSELF["a"] = WITHIN_ITSELF


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-4}, r"unknown key learning_rate; did you mean optimizer\.learning_r"),
        (
            {"optimizer": {"learning_rat": 1}},
            r"optimizer\.learning_rat; did you mean optimizer\.le",
        ),
        ({"data": ["a.csv"]}, r'data: found \["a\.csv"\], expected a dict of its fields'),
        ({"data": {"train": "a.csv"}}, r'data\.train: .*expected a list of text.*\["a\.csv"\]'),
        (
            {"data": {"train": ["a"]}, "train": {"batch_size": 0}},
            r"train\.batch_size: found 0, expected at least 1",
        ),
        ({"train": {"batch_size": 2.5}}, r"train\.batch_size: found 2\.5, expected a whole"),
        ({"train": {"steps": np.float32(2.5)}}, r"train\.steps: found 2\.5, expected a whole"),
        ({"train": {"steps": np.bool_(True)}}, r"train\.steps: found true, expected a whole"),
        ({"train": {"steps": {3}}}, r'train\.steps: found "\{3\}", expected a whole'),
        (
            {"data": {"max_length": 8}, "data.max_length": 9},
            r"data\.max_length is there twice, once in its section; remove one",
        ),
        (
            {"model": {"config": {"hidden_act": len}}},
            r"model\.config: found <built-in function len> in it, expected text, numbers",
        ),
        ({"model": {"config": WITHIN_ITSELF}}, r"model\.config: found values .* in themselves"),
        ({}, r"data\.train: found no file, expected files"),
        ({"data": {"dev": ["a"]}}, r"data\.train: found no file, expected training files"),
    ],
)
def test_what_cannot_be_used_is_told(changes, message):
    with pytest.raises(InputError, match=message):
        jaxllm.train(Config(model=ModelConfig(path="c")), **changes)


def test_a_configuration_is_a_file_or_a_config(tmp_path):
    with pytest.raises(InputError, match=r"found dict as the configuration.* as sections: data="):
        jaxllm.train({"data": {"train": ["a.csv"]}})
    with pytest.raises(InputError, match=r"none\.yaml: cannot read the configuration"):
        jaxllm.evaluate(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"model\.path: found null and no model_type"):
        jaxllm.evaluate()
