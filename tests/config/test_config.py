"""Configuration: files, overrides, round trips, and an answer to each mistake."""

import dataclasses
from pathlib import Path

import pytest

from jaxllm.config import help, reading
from jaxllm.config.fields import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from jaxllm.errors import InputError

BASE = "model: {path: weights}\ndata: {train: [a.csv]}\n"
GOOD = Config(model=ModelConfig(path="weights"), data=DataConfig(train=["a.csv"]))


@pytest.fixture
def write(tmp_path: Path):
    """Writes a configuration file and returns its name."""

    def write(text: str, name: str = "c.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def changed(section: str, **values) -> Config:
    return dataclasses.replace(
        GOOD, **{section: dataclasses.replace(getattr(GOOD, section), **values)}
    )


def test_a_file_over_the_defaults(write):
    text = "model: {path: weights}\ndata:\n  train: [a.csv]\noptimizer: {learning_rate: 3e-4}\n"
    assert reading.from_yaml(write(text)) == changed("optimizer", learning_rate=3e-4)


def test_the_file_and_load_agree(write):
    file = write(BASE)
    assert reading.load(["--config", file]) == reading.from_yaml(file) == GOOD


@pytest.mark.parametrize("number", ["2e-5", "2E-5", "2.e-5", "2.0e-05", ".00002", "+2e-5"])
def test_exponents_are_numbers(write, number):
    file = write(f"{BASE}optimizer: {{eps: {number}}}\n")
    assert reading.from_yaml(file).optimizer.eps == 2e-5
    loaded = reading.load(["--config", file, "--optimizer.learning_rate", number])
    assert loaded.optimizer.learning_rate == loaded.optimizer.eps == 2e-5
    nested = write(BASE.replace("weights", f"weights, config: {{layer_norm_eps: {number}}}"))
    assert reading.from_yaml(nested).model.config == {"layer_norm_eps": 2e-5}
    loaded = reading.load(["--config", file, "--model.config.layer_norm_eps", number])
    assert loaded.model.config == {"layer_norm_eps": 2e-5}


def test_whole_numbers_are_floats_where_floats_are_wanted(write):
    file = write(f"{BASE}train: {{epochs: 2, class_weights: [1, 2.5]}}\n")
    train = reading.load(["--config", file, "--optimizer.warmup", "100"]).train
    assert train.epochs == 2.0
    assert [type(x) for x in [train.epochs, *train.class_weights]] == [float] * 3


TRAPS = {
    "text that looks like a number": {"a": "2e-5", "b": "1", "c": "0x1f", "d": "1_000"},
    "text that looks like something else": {"a": "no", "b": "null", "c": "2020-01-01", "d": "~"},
    "keys that are numbers": {"id2label": {0: "negative", 1: "positive"}},
    "small and large": {"a": 1e-300, "b": 1e22, "c": 2**62, "d": float("inf")},
    "nested": {"a": [1, [2.5, None], {"b": True}], "c": {}, "d": []},
    "characters": {"a": "电影很好", "b": "a: b # c", "c": "two\nlines\n", "d": " x "},
}


@pytest.mark.parametrize("attributes", TRAPS.values(), ids=TRAPS)
def test_round_trip(write, attributes):
    given = dataclasses.replace(
        changed("model", config=attributes),
        data=DataConfig(train=["1e5"], labels=["no", "1", "2e-5", "", "1:30"], text_pair="b"),
        optimizer=OptimizerConfig(learning_rate=1e-7, frozen=["embeddings/*"]),
        train=TrainConfig(steps=5, seed=2**32 - 1),
    )
    file = write(reading.to_yaml(given))
    assert reading.from_yaml(file) == given
    assert reading.load(["--config", file]) == given
    assert reading.to_yaml(reading.from_yaml(file)) == reading.to_yaml(given)


@pytest.mark.parametrize(
    ("options", "section", "field", "value"),
    [
        (["--train.batch_size", "8"], "train", "batch_size", 8),
        (["--train.batch_size=8"], "train", "batch_size", 8),
        (["--data.train", "[x.csv, y.csv]"], "data", "train", ["x.csv", "y.csv"]),
        (["--data.train+", "x.csv"], "data", "train", ["a.csv", "x.csv"]),
        (["--data.labels", "[a, b]"], "data", "labels", ["a", "b"]),
        (["--data.packing", "false"], "data", "packing", False),
        (["--model.path", "1e3"], "model", "path", "1e3"),
        (["--model.tokenizer", "null"], "model", "tokenizer", None),
        (["--mesh.data", "-1"], "mesh", "data", -1),
        (["--model.config", "{a: 1}"], "model", "config", {"a": 1}),
        (["--model.config.a", "1", "--model.config.b", "x"], "model", "config", {"a": 1, "b": "x"}),
        (["--run.seeds", "[1, 2]"], "run", "seeds", [1, 2]),
        (["--data.label", "tags"], "data", "label", "tags"),
        (["--train.class_weights", "balanced"], "train", "class_weights", "balanced"),
        (["--train.class_weights", "[1, 2]"], "train", "class_weights", [1.0, 2.0]),
    ],
)
def test_override(write, options, section, field, value):
    loaded = reading.load(["--config", write(BASE), *options])
    assert loaded == changed(section, **{field: value})
    assert reading.load([*options, "--config", write(BASE)]) == loaded


def test_the_home_directory_is_meant_by_a_tilde(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = "model: {path: weights}\ndata: {train: [~/a.csv, b~.csv], dev: [~/b.csv]}\n"
    loaded = reading.load(["--config", write(text), "--run.dir=~/runs/a"])
    assert loaded.data.train == ["/home/me/a.csv", "b~.csv"]
    assert loaded.data.dev == ["/home/me/b.csv"]
    assert loaded.run.dir == "/home/me/runs/a"


def test_chinese_stays_readable():
    assert "电影" in reading.to_yaml(changed("data", labels=["电影", "书"]))


def test_a_later_file_goes_over_an_earlier_one(write):
    first = write(BASE + "train: {seed: 1, steps: 2}\n")
    second = write("train: {seed: 3}\n", "second.yaml")
    train = reading.load(["--config", first, "--config", second]).train
    assert (train.seed, train.steps) == (3, 2)


def test_overrides_need_no_file():
    assert reading.load(["--model.path", "weights", "--data.train", "[a.csv]"]) == GOOD


def test_print_config(write, capsys):
    file = write(BASE)
    with pytest.raises(SystemExit) as exit:
        reading.load(["--config", file, "--train.seed", "7", "--print_config"])
    assert exit.value.code == 0
    printed = write(capsys.readouterr().out, "printed.yaml")
    assert reading.from_yaml(printed) == changed("train", seed=7)


MISTAKES = {
    "learning_rate: 1\n": ["line 1", "unknown", "did you mean optimizer.learning_rate?"],
    "modle: {path: x}\n": ["unknown section modle", "did you mean model?"],
    "# a comment\nmodel:\n  pth: x\n": ["line 3", "model.pth", "did you mean model.path?"],
    "data: {batch_size: 3}\n": ["data.batch_size", "did you mean train.batch_size?"],
    "optmizer: {warmup: 3}\n": ["optmizer", "did you mean optimizer?"],
    "optimizer: {zzz: 3}\n": ["optimizer.zzz", "optimizer has name, learning_rate"],
    "train: {batch_size: abc}\n": ["train.batch_size", 'found "abc"', "a whole number"],
    "train: {batch_size: null}\n": ["train.batch_size", "found null"],
    "train: {batch_size: true}\n": ["train.batch_size", "found true"],
    "train: {batch_size: 3.5}\n": ["train.batch_size", "found 3.5"],
    "train: {epochs: '3'}\n": ["train.epochs", 'found "3"', "a number"],
    "data: {labels: [no, yes]}\n": ["data.labels", "[false, true]", "in quotes"],
    "data: {train: x.csv}\n": ["data.train", 'found "x.csv"', "a list of text", '["x.csv"]'],
    "data: {buckets: null}\n": ["data.buckets", "found null", "a list of whole numbers"],
    "data: {packing: 1}\n": ["data.packing", "true or false"],
    "model: {path: 3}\n": ["model.path", "found 3", "text or null", "in quotes"],
    "model: {dtype: f32}\n": ["model.dtype", 'found "f32"', "one of float32, bfloat16"],
    "model: {config: {1: 2}}\n": ["model.config", "names with values"],
    "model: {path: x, path: y}\n": ["line 1", "model.path is there twice"],
    "model: {config: {a: 1, a: 2}}\n": ["model.config.a is there twice"],
    "model: {path: x}\nmodel: {}\n": ["line 2", "model is there twice"],
    "model: 3\n": ["model", "found 3", "keys of model"],
    "model:\n": ["model", "found null", "keys of model"],
    "- 1\n": ["the sections model, data, optimizer, train, mesh, run"],
    "": ["is empty", "the sections model"],
    "model: [1\n": ["line 2", "not valid YAML"],
    "model: {path: !!python/x 3}\n": ["line 1", "not valid YAML", "python/x"],
    "model: {path: 2020-99-99}\n": ["line 1", "month", "quotes"],
    'model: {path: "a\\0b"}\n': ["line 1", "model.path", "a\\u0000b"],
    "? [a]\n: b\n": ["line 1", '["a"]', "expected a name"],
    "3: {a: 1}\n": ["unknown section 3"],
    "optimizer: {eps: 1%s}\n" % ("0" * 400): ["optimizer.eps", "expected a number"],
}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[" * 900, "RecursionError"),
        ("{a: " * 900, "RecursionError"),
        ("model: {config: {a: " + "[" * 900 + "]" * 900 + "}}", "RecursionError"),
        ("model: &m {config: *m}", "its aliases stand for more than 1,000,000 values"),
        ("model: {config: {a0: &a0 x", "its aliases stand for more than 1,000,000 values"),
        ("\0\1\2", "not valid YAML"),
        ("a: x" + " " * 2**22, "4,194,308 characters, at most 4,194,304 are read"),
    ],
    ids=["list", "map", "deep value", "cycle", "laughs", "binary", "large"],
)
def test_a_hostile_file_is_one_message(write, text, part):
    if "a0" in text:  # each level stands for ten times the values of the one before
        levels = (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))
        text = ", ".join([text, *levels]) + "}}"
    file = write(text)
    with pytest.raises(InputError) as error:
        reading.load(["--config", file])
    assert str(error.value).startswith(file)
    assert part in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_long_list_is_read_once_and_may_be_added_to(write):
    # jsonargparse copies a default for each of its items: seconds for this one, were it a default.
    names = [f"label_{n}" for n in range(500)]
    file = write(f"{BASE[:-2]}, labels: [{', '.join(names)}]}}\n")
    options = help.field_parser("jaxllm train")
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "set_defaults", given.append)
        patch.setattr(help, "field_parser", lambda prog: options)
        assert reading.load(["--config", file, "--train.seed", "3"]).data.labels == names
    assert given == [{}]
    file = write(BASE)
    assert reading.load(["--config", file, "--data.train+", "b.csv"]).data.train == [
        "a.csv",
        "b.csv",
    ]


@pytest.mark.parametrize(("text", "parts"), MISTAKES.items(), ids=map(repr, MISTAKES))
def test_mistake_in_a_file(write, text, parts):
    file = write(text)
    for read in (reading.from_yaml, lambda file: reading.load(["--config", file])):
        with pytest.raises(InputError) as error:
            read(file)
        assert all(part in str(error.value) for part in [file, *parts]), str(error.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--modle.path", "x"], ["--modle.path", "did you mean --model.path?"]),
        (["--model.pth=x"], ["--model.pth", "did you mean --model.path?"]),
        (["--optmizer.warmp", "3"], ["did you mean --optimizer.warmup?"]),
        (["--model.pat", "x"], ["--model.pat;", "did you mean --model.path?"]),
        (["--seed", "x"], ["--seed", "did you mean --train.seed?"]),
        (["--train.batch_size", "abc"], ["--train.batch_size", "found abc", "a whole number"]),
        (["--train.batch_size", "null"], ["--train.batch_size", "found null", "a whole number"]),
        (["--data.buckets", "null"], ["--data.buckets", "found null", "whole numbers"]),
        (["--train.batch_size", "0"], ["--train.batch_size", "found 0", "at least 1"]),
        (["--train.batch_size"], ["--train.batch_size", "one argument"]),
        (["--train.steps", "9" * 5000], ["--train.steps: Exceeds the limit"]),
        (["--train.steps", str(2**31)], ["--train.steps", "found 2147483648", "less than 2**31"]),
        (["--data.buckets", "[8, 99999999999]"], ["--data.buckets", "less than 2**31"]),
        (["--data.train", "x.csv"], ["--data.train", "found x.csv", "write a list, [x.csv]"]),
        (["--data.labels", "[1, 2]"], ["--data.labels", "found [1, 2]", "a list of text or null"]),
        (["--model.dtype", "f32"], ["--model.dtype", "found f32", "one of float32, bfloat16"]),
        (["--mesh", "3"], ["unknown option --mesh; it is a section, of --mesh.data, --mesh.fsdp"]),
        (["--model.path.x", "3"], ["--model.path.x", "has no parts"]),
        (["stray"], ["unexpected argument stray"]),
        (["--config"], ["--config", "one argument"]),
        (["--config", "absent.yaml"], ["absent.yaml", "cannot read", "No such file"]),
    ],
    ids=str,
)
def test_mistake_on_the_command_line(write, options, parts):
    with pytest.raises(InputError) as error:
        reading.load(["--config", write(BASE), *options])
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_not_utf_8(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes("model: {path: é}\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"c\.yaml: byte 14 is not UTF-8"):
        reading.from_yaml(file)


BAD_VALUES = [
    ("model", {"path": None}, "model.path: found null and no model_type"),
    ("model", {"path": ""}, "model.path"),
    ("model", {"unroll": -1}, "model.unroll"),
    ("data", {"train": []}, "data.train: found no file"),
    ("data", {"dataset": "glue"}, "data.dataset: found 'glue' beside the files"),
    ("data", {"dataset_config": "sst2"}, "data.dataset_config"),
    ("data", {"text": "label"}, "data.text: found 'label', expected another column"),
    ("data", {"text_pair": "text"}, "data.text"),
    ("data", {"columns": ["label", "x"]}, "data.text: found 'text', expected one of data.columns"),
    ("data", {"columns": ["label", "text", "text"]}, "data.columns"),
    ("data", {"labels": ["a", "a"]}, "data.labels"),
    ("data", {"labels": ["a"]}, "data.labels"),
    ("data", {"max_length": 2}, "data.max_length"),
    ("data", {"max_length": 4, "text_pair": "b"}, "data.max_length"),
    ("data", {"pack_window": 0}, "data.pack_window"),
    ("data", {"workers": -1}, "data.workers"),
    ("data", {"max_train_examples": 0}, "data.max_train_examples"),
    ("data", {"max_dev_examples": 0}, "data.max_dev_examples"),
    ("data", {"buckets": []}, "data.buckets"),
    ("data", {"buckets": [64, 32]}, "data.buckets"),
    ("data", {"buckets": [32, 32]}, "data.buckets"),
    ("data", {"buckets": [0, 32]}, "data.buckets"),
    ("data", {"buckets": [64], "packing": False}, "data.buckets"),
    ("optimizer", {"learning_rate": -1.0}, "optimizer.learning_rate"),
    ("optimizer", {"learning_rate": float("nan")}, "optimizer.learning_rate"),
    ("optimizer", {"learning_rate": float("inf")}, "optimizer.learning_rate"),
    ("optimizer", {"warmup": -0.1}, "optimizer.warmup"),
    ("optimizer", {"warmup": 1.5}, "optimizer.warmup"),
    ("optimizer", {"warmup": float("inf")}, "optimizer.warmup"),
    ("optimizer", {"weight_decay": -1.0}, "optimizer.weight_decay"),
    ("optimizer", {"clip_norm": -1.0}, "optimizer.clip_norm"),
    ("optimizer", {"l1": -1.0}, "optimizer.l1"),
    ("optimizer", {"l2": -1.0}, "optimizer.l2"),
    ("optimizer", {"beta1": 1.0}, "optimizer.beta1"),
    ("optimizer", {"beta2": -0.1}, "optimizer.beta2"),
    ("optimizer", {"momentum": 1.0}, "optimizer.momentum"),
    ("optimizer", {"eps": 0.0}, "optimizer.eps"),
    ("optimizer", {"layer_decay": 0.0}, "optimizer.layer_decay"),
    ("optimizer", {"layer_decay": 1.1}, "optimizer.layer_decay"),
    ("optimizer", {"frozen": [""]}, "optimizer.frozen"),
    ("train", {"batch_size": 0}, "train.batch_size"),
    ("train", {"accumulation": 0}, "train.accumulation"),
    ("train", {"accumulation": 3}, "train.batch_size: found 32, expected a multiple"),
    ("train", {"epochs": 0.0}, "train.epochs"),
    ("train", {"steps": 0}, "train.steps"),
    ("train", {"seed": -1}, "train.seed"),
    ("train", {"seed": 2**32}, "train.seed"),
    ("train", {"label_smoothing": 1.0}, "train.label_smoothing"),
    ("train", {"class_weights": []}, "train.class_weights"),
    ("train", {"class_weights": [1.0, -1.0]}, "train.class_weights"),
    ("train", {"class_weights": [0.0, 0.0]}, "train.class_weights"),
    ("train", {"eval_every": -1}, "train.eval_every"),
    ("train", {"eval_batch_size": 0}, "train.eval_batch_size"),
    ("train", {"patience": -1}, "train.patience"),
    ("train", {"save_every": -1}, "train.save_every"),
    ("mesh", {"data": 0}, "mesh.data"),
    ("mesh", {"fsdp": 0}, "mesh.fsdp"),
    ("mesh", {"tensor": -1}, "mesh.tensor"),
    ("run", {"dir": ""}, "run.dir"),
    ("run", {"seeds": []}, "run.seeds"),
    ("run", {"seeds": [1, 1]}, "run.seeds"),
    ("run", {"seeds": [-1]}, "run.seeds"),
    ("run", {"keep": 0}, "run.keep"),
    ("run", {"log_every": 0}, "run.log_every"),
    ("qa", {"max_question_length": 0}, "qa.max_question_length"),
    ("qa", {"max_answer_length": 0}, "qa.max_answer_length"),
    ("qa", {"n_best": 0}, "qa.n_best"),
    ("qa", {"doc_stride": -1}, "qa.doc_stride"),
    ("qa", {"null_threshold": float("inf")}, "qa.null_threshold"),
]


@pytest.mark.parametrize(("section", "values", "message"), BAD_VALUES, ids=str)
def test_value_out_of_range(write, section, values, message):
    bad = changed(section, **values)
    with pytest.raises(InputError) as error:
        reading.check(bad)
    assert str(error.value).startswith(message)
    file = write(reading.to_yaml(bad))
    with pytest.raises(InputError) as error:
        reading.from_yaml(file)
    assert str(error.value).startswith(f"{file}: {message}")


def test_values_at_odds_with_each_other():
    late = dataclasses.replace(changed("train", steps=5), optimizer=OptimizerConfig(warmup=6.0))
    with pytest.raises(InputError, match=r"optimizer\.warmup: found 6\.0, .* train\.steps=5"):
        reading.check(late)
    weights = dataclasses.replace(
        changed("data", labels=["a", "b"]), train=TrainConfig(class_weights=[1.0])
    )
    with pytest.raises(InputError, match=r"train\.class_weights: .* 2 weights"):
        reading.check(weights)
    regression = changed("model", problem_type="regression")
    reading.check(regression)
    for section, values in [
        ("data", {"train": ["a.csv"], "labels": ["a", "b"]}),
        ("train", {"label_smoothing": 0.1}),
        ("train", {"class_weights": [1.0]}),
    ]:
        bad = dataclasses.replace(
            regression, **{section: getattr(changed(section, **values), section)}
        )
        with pytest.raises(InputError, match="regression"):
            reading.check(bad)


@pytest.mark.parametrize(
    "good",
    [
        changed("model", path=None, config={"model_type": "bert"}),
        changed("data", train=[], dataset="glue", dataset_config="sst2"),
        changed("data", train=[], dev=["dev.csv"]),
        changed("data", buckets=[128], packing=False),
        changed("optimizer", learning_rate=0.0, warmup=0.0, clip_norm=0.0),
        changed("optimizer", warmup=10.0),
        changed("train", class_weights=[0.0, 1.0]),
        changed("train", class_weights="balanced"),
    ],
)
def test_unusual_but_good(good):
    reading.check(good)


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.train.seed = 1  # type: ignore[misc]
