"""The classification task: every row counted once, labels kept, reports written, mistakes named."""

import csv
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answering import predict, read_lines
from configurations import change

from jaxllm.config.fields import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.data.corpus import Examples, ReadReport
from jaxllm.data.loader import LoaderState
from jaxllm.errors import InputError
from jaxllm.models import Compute
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import hf
from jaxllm.pretrained.labels import label_names, problem_type
from jaxllm.pretrained.storage import OneModel, load_saved
from jaxllm.tasks import build as task_build
from jaxllm.tasks import classification, evaluation
from jaxllm.tasks.build import build
from jaxllm.tasks.evaluate import evaluate
from jaxllm.tasks.evaluation import Evaluator
from jaxllm.training import losses
from jaxllm.trees import flatten

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = ["很差", "meh", "great fun"]
MESHES = {"data": MeshConfig(), "all": MeshConfig(data=2, fsdp=2, tensor=2)}


def make_examples(count, rng):
    """Example i is a run of tokens i + 1, so that what is at its head tells which it is."""
    lengths = rng.integers(1, 12, count)
    return Examples(
        tokens=np.repeat(np.arange(1, count + 1), lengths).astype(np.int32),
        type_ids=np.zeros(lengths.sum(), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.arange(count, dtype=np.int32) % 2,
        rows=np.arange(1, count + 1),
        report=ReadReport(read=count, kept=count),
    )


@jax.jit
def read_heads(params, batch):
    """In place of a model: the logits are the first token and the label, the loss is the label."""
    first = jnp.take_along_axis(batch["input_ids"], batch["head_positions"], axis=1)
    weights = batch["label_weights"]
    logits = jnp.stack([first, batch["labels"]], -1).astype(jnp.float32)
    return {"loss": (jnp.sum(batch["labels"] * weights), jnp.sum(weights))}, logits


def make_evaluator(examples, mesh, batch_size=8, packing=True):
    data = DataConfig(max_length=16, packing=packing, buckets=[8, 16])
    return Evaluator(examples, data, SINGLE, ["a", "b"], batch_size, mesh, read_heads)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_every_row_is_counted_once(shape, batch_size, packing, rng):
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    examples = make_examples(45, rng)
    logits, loss = make_evaluator(examples, mesh, batch_size, packing).logits(None)
    np.testing.assert_array_equal(logits[:, 0], np.arange(1, 46))
    np.testing.assert_array_equal(logits[:, 1], examples.labels)
    assert loss == pytest.approx(22 / 45)


@pytest.mark.parametrize("fault", ["twice", "never", "weight", "mixed up"])
def test_a_row_counted_twice_or_never_is_an_error(fault, rng, monkeypatch):
    original = evaluation.eval_batches

    def faulty(*args, **options):
        first, *rest = original(*args, **options)
        if fault == "weight":
            arrays, index = first
            first = (arrays | {"label_weights": arrays["label_weights"] * 2}, index)
        if fault == "mixed up":
            arrays, index = first
            first = (arrays, np.where(index == index[0, 0], index[0, 1], index))
        yield from {"twice": [first, first], "never": []}.get(fault, [first])
        yield from rest

    monkeypatch.setattr(evaluation, "eval_batches", faulty)
    evaluator = make_evaluator(make_examples(45, rng), make_mesh(8))
    with pytest.raises(RuntimeError, match="must see each of 45 examples once"):
        evaluator.metrics(None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training and dev files of the three kinds of problem, in one directory.

    No two rows have the same text: their scores would tie, and the order of a tie is rounding's.
    """
    directory = tmp_path_factory.mktemp("data")
    words = [
        "good",
        "bad",
        "movie",
        "plot",
        "story",
        "loved",
        "hated",
        "it",
        "was",
        "the",
        "not",
        "so",
    ]
    rng = np.random.default_rng(0)
    texts: dict[str, None] = {}
    while len(texts) < 97:
        texts[" ".join(rng.choice(words, rng.integers(1, 20)))] = None
    unused = iter(texts)
    for part, count in {"train": 60, "dev": 37}.items():
        with open(directory / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "tags", "stars"])
            for i in range(count):
                tags = "|".join(n for c, n in enumerate(["x", "y"]) if i % 3 >= c + i % 2)
                writer.writerow([next(unused), LABELS[i % 3], tags or "y", 1 + i % 4 / 2])
    return directory


@pytest.fixture(scope="module")
def base_config(files, tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    attributes = {
        name: getattr(tiny_bert_config, name)
        for name in (
            *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            *("max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob"),
        )
    }
    size = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    attributes |= {"model_type": "bert", "vocab_size": size, "initializer_range": 0.2}
    return Config(
        model=ModelConfig(config=attributes, tokenizer=str(tiny_tokenizer_dir)),
        data=DataConfig(
            train=[str(files / "train.csv")],
            dev=[str(files / "dev.csv")],
            labels=LABELS,
            max_length=32,
            cache_dir=str(tmp_path_factory.mktemp("cache")),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(batch_size=16, epochs=1.5, eval_batch_size=16),
        run=RunConfig(dir=str(tmp_path_factory.mktemp("run"))),
    )


@pytest.fixture(scope="module")
def job(base_config):
    return build(base_config)


@pytest.fixture(scope="module")
def saved(job, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    job.export(job.state.params, directory)
    return str(directory)


def whole(job, directory):
    """The job's parameters with all words, as they are exported."""
    job.export(job.state.params, directory / "model")
    path = str(directory / "model")
    return loaded(path, make_mesh(devices=jax.devices()[:1]))


def loaded(path, mesh):
    model = OneModel("sequence-classification", hf.load_config(path))
    return load_saved(path, model, mesh, Compute())[2]


@pytest.fixture(scope="module")
def trunk(base_config, job, tmp_path_factory):
    """The job's model without its head: reading it is quicker than compiling initialisers."""
    params = whole(job, tmp_path_factory.mktemp("whole"))
    del params["classifier"]
    directory = tmp_path_factory.mktemp("trunk") / "model"
    hf.save_pretrained(directory, params, hf.load_config(None, **base_config.model.config), "base")
    return {"path": str(directory), "config": {}}


def test_label_names_come_back_from_a_saved_model(job, saved):
    config = hf.load_config(saved)
    params = loaded(saved, make_mesh())
    assert label_names(config) == LABELS
    assert config.label2id == {name: i for i, name in enumerate(LABELS)}
    assert problem_type(config) == SINGLE
    assert config.architectures == ["BertForSequenceClassification"]
    before, after = flatten(job.state.params), flatten(params)
    assert before.keys() == after.keys()
    rows = {row.tobytes() for row in np.asarray(after["embeddings/word/embedding"])}
    # The train state holds the words of the training text only (test_vocabulary.py).
    assert rows > {row.tobytes() for row in np.asarray(before.pop("embeddings/word/embedding"))}
    for path, x in before.items():
        np.testing.assert_array_equal(x, after[path], err_msg=path)
    kept = json.loads((Path(saved) / "jaxllm.json").read_text())
    assert kept["text"] == "text"
    assert kept["max_length"] == 32


def test_evaluate_predict_and_training_agree(base_config, job, saved, files, tmp_path, caplog):
    expected = job.evaluate(job.state.params)
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    config = change(config, run={"dir": str(tmp_path)}, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    config = change(config, train={"eval_batch_size": 5, "label_smoothing": 0.3})
    with caplog.at_level("INFO", logger="jaxllm"):
        values = evaluate(config)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-5), name
    report = (tmp_path / "evaluate" / "report.txt").read_text(encoding="utf-8")
    first, second, *_ = report.splitlines()
    assert re.fullmatch(rf"model {re.escape(saved)}, \d{{4}}-\d\d-\d\d \d\d:\d\d", first)
    assert second == "37 rows read, 37 kept"
    assert "confusion matrix" in report
    assert report in caplog.text
    assert json.loads((tmp_path / "evaluate" / "metrics.json").read_text()) == values

    lines = read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    with open(files / "dev.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == list(range(1, 38))
    assert [line["label"] for line in lines] == [row["label"] for row in rows]
    right = np.mean([line["label"] == line["predicted"] for line in lines])
    assert values["accuracy"] == pytest.approx(right)

    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    predict(saved, str(source), str(tmp_path / "out.jsonl"), 8)
    for line, answer in zip(lines, read_lines(tmp_path / "out.jsonl"), strict=True):
        assert answer["label"] == line["predicted"]
        assert answer["score"] == pytest.approx(line["probability"], abs=1e-5)
        assert answer["probabilities"] == pytest.approx(line["probabilities"], abs=1e-5)
        assert list(line["probabilities"]) == LABELS
    assert len({line["probability"] for line in lines}) == 37


def test_report_writes_predictions_and_the_next_line(job, tmp_path, caplog):
    directory = tmp_path / "my run"
    directory.mkdir()
    with caplog.at_level("INFO", logger="jaxllm"):
        job.report(job.state.params, directory, 7)
    assert len(read_lines(directory / "predictions.jsonl")) == 37
    for name in ("roc.png", "confusion.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    report = (directory / "report.txt").read_text(encoding="utf-8")
    assert report.startswith(f"model {directory}/model, step 7 of {job.total_steps}, 20")
    assert "majority class " in report
    assert f"jaxllm predict --model '{directory}/model' --input FILE --output FILE" in caplog.text


def test_a_model_that_predicts_one_class_is_remarked_on_at_each_evaluation(job, caplog):
    job.evaluate(jax.tree.map(lambda x: 0 * x, job.state.params))
    said = f"the model predicts {LABELS[0]!r} for every row, though there are {len(LABELS)} classes"
    assert caplog.text.count(said) == 1


def test_job_fields_follow_the_config(base_config, job, trunk):
    steps = [job.loader.steps_in_epoch(epoch) for epoch in (0, 1)]
    assert job.total_steps == steps[0] + round(steps[1] / 2)
    assert job.metric == "accuracy"
    assert job.higher_is_better
    assert job.learning_rate(job.total_steps) == 0.0
    assert max(map(job.learning_rate, range(job.total_steps))) == pytest.approx(1e-3)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), job.state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), job.state_shape) == shapes

    config = change(base_config, train={"steps": 7, "metric": "loss", "accumulation": 2})
    config = change(config, model=trunk)
    other = build(change(config, data={"labels": None}))
    assert other.total_steps == 7
    assert other.metric == "loss"
    assert not other.higher_is_better
    assert other.loader.rows_per_batch % 16 == 0  # 8 devices, 2 parts each


def test_without_dev_data_there_is_nothing_to_evaluate(base_config, trunk, tmp_path, caplog):
    job = build(change(base_config, model=trunk, data={"dev": []}))
    assert job.evaluate(job.state.params) == {}
    with caplog.at_level("INFO", logger="jaxllm"):
        job.report(job.state.params, tmp_path, 7)
    assert "jaxllm predict --model" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("problem", "column", "names", "metric"),
    [(MULTI, "tags", ["x", "y"], "f1"), ("regression", "stars", [], "pearson")],
)
def test_several_labels_and_regression(
    problem, column, names, metric, base_config, trunk, tmp_path
):
    config = change(
        base_config,
        model=trunk | {"problem_type": problem},
        data={"label": column, "labels": None},
        run={"dir": str(tmp_path)},
    )
    job = build(config)
    assert job.metric == metric
    batch = next(job.loader.batches(LoaderState()))
    state, values = job.train_step(job.state, batch.arrays)
    loss, weight = (float(x) for x in values["loss"])
    assert np.isfinite(loss)
    assert weight == batch.examples
    expected = job.evaluate(state.params)
    job.export(state.params, tmp_path / "model")
    job.report(state.params, tmp_path, 7)
    lines = read_lines(tmp_path / "predictions.jsonl")
    if problem == MULTI:
        assert {"f1/x", "f1/y", "f1_micro", "roc_auc", "loss"} <= expected.keys()
        assert {tuple(line["label"]) for line in lines} == {("x",), ("y",), ("x", "y")}
        for line in lines:
            assert line["predicted"] == [n for n in names if line["probabilities"][n] > 0.5]
    else:
        assert expected["mse"] == pytest.approx(expected["loss"], abs=1e-5)
        assert [line["label"] for line in lines[:5]] == [1, 1.5, 2, 2.5, 1]
        assert not list(tmp_path.glob("*.png"))
        error = [(line["label"] - line["predicted"]) ** 2 for line in lines]
        assert expected["mse"] == pytest.approx(np.mean(error), abs=1e-5)
    saved = change(config, model={"path": str(tmp_path / "model"), "config": {}})
    model_config = hf.load_config(saved.model.path)
    assert problem_type(model_config) == problem
    assert label_names(model_config) == names
    assert evaluate(saved) == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_pairs_are_learned_by_a_model_of_one_token_type(base_config):
    """As KLUE's RoBERTa, whose tokenizer marks the second text with another type."""
    one_type = base_config.model.config | {"type_vocab_size": 1}
    pairs = change(base_config, model={"config": one_type}, data={"text_pair": "tags"})
    job = build(pairs)
    batch = next(job.loader.batches(LoaderState()))
    assert batch.arrays["token_type_ids"].max() == 1
    assert np.isfinite(job.evaluate(job.state.params)["loss"])


def test_pretrained_weights_with_a_new_head(base_config, job, trunk):
    config = change(base_config, model=trunk)
    params = flatten(build(config).state.params)
    # Everything equals the job's: the new head is that of random weights of the same seed.
    for path, x in flatten(job.state.params).items():
        np.testing.assert_array_equal(params[path], x, err_msg=path)
    head = params["classifier/kernel"]
    other = flatten(build(change(config, train={"seed": 1})).state.params)
    assert not np.array_equal(other["classifier/kernel"], head)
    with pytest.raises(InputError, match="no sequence-classification head"):
        evaluate(config)


@pytest.mark.parametrize("train", [{"label_smoothing": 0.2}, {"class_weights": [1.0, 2.0, 5.0]}])
def test_smoothing_and_class_weights_change_the_training_loss_only(
    train, base_config, job, saved, monkeypatch
):
    config = change(base_config, model={"path": saved, "config": {}})
    with monkeypatch.context() as patch:
        patch.setattr(task_build, "make_train_step", lambda objective, *_, **__: objective)
        patch.setattr(classification, "labelled", lambda apply, loss_fn: loss_fn)
        plain, changed = (build(c).train_step for c in (config, change(config, train=train)))
    logits, labels = jnp.array([[1.0, 2.0, 0.5], [3.0, 0.0, 1.0]]), jnp.array([1, 2])
    loss, weight = changed(logits, labels, jnp.ones(2))
    expected = losses.cross_entropy(logits, labels, jnp.ones(2), **tupled(train))
    assert (float(loss), float(weight)) == tuple(map(float, expected))
    assert float(loss) != float(plain(logits, labels, jnp.ones(2))[0])
    evaluated = build(change(config, train=train))
    assert evaluated.evaluate(evaluated.state.params) == job.evaluate(job.state.params)


LIVE = [
    ("model", {"dtype": "bfloat16"}),
    ("optimizer", {"clip_norm": 0.01}),
    ("optimizer", {"name": "lion"}),
    ("optimizer", {"learning_rate": 0.2}),
    ("optimizer", {"warmup": 1.0}),
    ("optimizer", {"weight_decay": 0.5}),
    ("optimizer", {"l1": 0.5}),
    ("optimizer", {"l2": 0.5}),
    ("optimizer", {"layer_decay": 0.5}),
    ("optimizer", {"frozen": ["embeddings/*"]}),
    ("train", {"accumulation": 2}),
    ("train", {"batch_size": 32}),
    ("train", {"label_smoothing": 0.2}),
    ("train", {"class_weights": [1.0, 2.0, 5.0]}),
    ("train", {"class_weights": "balanced"}),
    ("data", {"sampler": "balanced"}),
    ("train", {"seed": 1}),
    ("data", {"packing": False}),
    ("data", {"max_length": 16}),
]


@pytest.mark.slow
def test_every_field_reaches_the_step(base_config, saved, monkeypatch):
    """With a field changed the step is another program, or it is given other numbers."""
    one_device = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(task_build, "make_mesh", lambda *_: one_device)
    plain = change(
        base_config,
        model={"path": saved, "config": {}},
        optimizer={"name": "sgd", "learning_rate": 0.1, "warmup": 0.0},
        data={"dev": []},
    )

    def first_step(config):
        job = build(config)
        given = job.state, next(job.loader.batches(LoaderState())).arrays
        program = job.train_step.lower(*given).as_text()
        return program, [np.asarray(x).tobytes() for x in jax.tree.leaves(given)]

    before = first_step(plain)
    assert before == first_step(plain)
    for section, fields in LIVE:
        assert before != first_step(change(plain, **{section: fields})), f"{section}: {fields}"


def tupled(options):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


MISTAKES = {
    "train.metric: found 'f2', expected one of accuracy, f1": {"train": {"metric": "f2"}},
    r"train.class_weights: found 2 weights, expected 3": {"train": {"class_weights": [1.0, 2.0]}},
    "data.max_length: found 65, expected at most the model's 64": {"data": {"max_length": 65}},
    "model.tokenizer: found null": {"model": {"tokenizer": None}},
    "num_labels follows from the labels": {"model": {"config": {"num_labels": 3}}},
    "(vocab_size); give the tokenizer": {"model": {"config": {"vocab_size": 20}}},
    "optimizer.frozen: pattern 'encoder/*' matches no": {"optimizer": {"frozen": ["encoder/*"]}},
    "unknown label": {"data": {"labels": ["很差", "meh"]}},
    "mesh data=3": {"mesh": {"data": 3}},
    "not divisible by 24": {"train": {"accumulation": 3}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, base_config):
    sections = {name: dict(fields) for name, fields in MISTAKES[message].items()}
    if "config" in sections.get("model", {}):
        sections["model"]["config"] = base_config.model.config | sections["model"]["config"]
    with pytest.raises(InputError) as error:
        build(change(base_config, **sections))
    assert message in str(error.value)


def test_smoothing_is_for_one_label_a_row(base_config):
    config = change(
        base_config,
        model={"problem_type": MULTI},
        data={"label": "tags", "labels": None},
        train={"label_smoothing": 0.1},
    )
    with pytest.raises(InputError, match=r"train.label_smoothing: expected none"):
        build(config)


def test_evaluating_with_what_does_not_fit_is_refused(base_config, saved, job, tmp_path):
    config = change(base_config, model={"path": saved}, run={"dir": str(tmp_path)})
    cases = {
        "model.path: found null": change(config, model={"path": None}),
        "data.dev: found no files": change(config, data={"dev": []}),
        "model.problem_type: found regression": change(
            config, model={"problem_type": "regression"}, data={"labels": None}
        ),
        "data.labels: found ['meh', '很差', 'dull'], but the model": change(
            config, data={"labels": ["meh", "很差", "dull"]}
        ),
    }
    (tmp_path / "file").touch()
    cases["file/evaluate: Not a directory"] = change(config, run={"dir": str(tmp_path / "file")})
    for message, case in cases.items():
        with pytest.raises(InputError) as error:
            evaluate(case)
        assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_foreign_model_takes_the_labels_of_the_config(base_config, job, tmp_path):
    foreign = hf.load_config(None, **base_config.model.config, num_labels=3)
    (tmp_path / "whole").mkdir()
    head = "sequence-classification"
    hf.save_pretrained(tmp_path / "model", whole(job, tmp_path / "whole"), foreign, head)
    config = change(base_config, model={"path": str(tmp_path / "model"), "config": {}})
    values = evaluate(change(config, run={"dir": str(tmp_path)}))
    assert values["f1/很差"] == job.evaluate(job.state.params)["f1/很差"]
    with pytest.raises(InputError, match="unknown label"):
        evaluate(change(config, data={"labels": None}, run={"dir": str(tmp_path)}))
