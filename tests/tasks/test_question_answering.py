"""Question answering from file to answer: train, evaluate, write, predict."""

import json
import re

import jax
import numpy as np
import pytest
from answering import predict
from configurations import change

from jaxllm.config.fields import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    QAConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.data.loader import LoaderState
from jaxllm.errors import InputError
from jaxllm.tasks.build import build
from jaxllm.tasks.evaluate import evaluate

WORDS = ["movie", "plot", "story", "good", "bad", "liked", "was", "the", "it", "not", "film"]


def paragraph(rng, number, questions, *, impossible):
    """A context of several windows; a question is the word before its answer."""
    words = list(rng.choice(WORDS, 30))
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    rows = []
    for k in range(questions):
        at = int(rng.integers(1, 29))
        answers = [{"text": words[at], "answer_start": int(starts[at])}]
        silent = impossible and k % 2 == 0
        rows.append(
            {
                "id": f"{number}-{k}",
                "question": words[at - 1],
                "answers": [] if silent else answers,
                "is_impossible": silent,
            }
        )
    return {"context": " ".join(words), "qas": rows}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training and dev files: with unanswerable questions ("2") and without ("1")."""
    directory = tmp_path_factory.mktemp("squad")
    rng = np.random.default_rng(0)
    for version, impossible in (("1", False), ("2", True)):
        for part, count in (("train", 6), ("dev", 4)):
            paragraphs = [
                paragraph(rng, f"{part}-{i}", 3, impossible=impossible) for i in range(count)
            ]
            content = {"data": [{"paragraphs": paragraphs}]}
            (directory / f"{part}{version}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def config(files, tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    attributes = {name: getattr(tiny_bert_config, name) for name in names}
    size = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    attributes |= {"model_type": "bert", "vocab_size": size, "initializer_range": 0.2}
    return Config(
        model=ModelConfig(
            task="question-answering", config=attributes, tokenizer=str(tiny_tokenizer_dir)
        ),
        data=DataConfig(
            train=[str(files / "train2.json")], dev=[str(files / "dev2.json")], max_length=64
        ),
        qa=QAConfig(max_question_length=4, doc_stride=4, n_best=5),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(batch_size=16, epochs=1, eval_batch_size=16),
        run=RunConfig(dir=str(tmp_path_factory.mktemp("run"))),
    )


@pytest.fixture(scope="module")
def job(config):
    return build(config)


@pytest.fixture(scope="module")
def report(job, tmp_path_factory):
    """A run directory with what is written at the end: report, predictions, model."""
    directory = tmp_path_factory.mktemp("report")
    job.report(job.state.params, directory, 7)
    job.export(job.state.params, directory / "model")
    return directory


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_metrics_and_predictions_agree(job, report, files):
    values = job.evaluate(job.state.params)
    predictions = read(report / "predictions.json")
    odds = read(report / "null_odds.json")
    n_best = read(report / "nbest_predictions.json")
    paragraphs = read(files / "dev2.json")["data"][0]["paragraphs"]
    rows = {row["id"]: (row, p["context"]) for p in paragraphs for row in p["qas"]}
    assert list(predictions) == list(odds) == list(n_best) == list(rows)
    exact = []
    for name, (row, context) in rows.items():
        assert len(n_best[name]) == 5
        best = next(answer["text"] for answer in n_best[name] if answer["text"])
        assert best in context
        assert predictions[name] == ("" if odds[name] > 0 else best)
        exact.append(predictions[name] == (row["answers"] or [{"text": ""}])[0]["text"])
    assert values["exact_match"] == pytest.approx(100 * np.mean(exact))
    assert values["total"] == 12
    assert values["HasAns_total"] == 4
    assert values["NoAns_total"] == 8
    assert "best_f1_thresh" in values
    assert values["loss"] > 0
    assert re.search(rf"^f1 +{values['f1']:.4f}$", (report / "report.txt").read_text(), re.M)


def test_packed_and_padded_rows_give_the_same(job, config, report):
    saved = change(config, model={"path": str(report / "model"), "config": {}})
    packed = job.evaluate(job.state.params)
    padded = evaluate(
        change(saved, data={"packing": False, "buckets": [64]}, run={"dir": str(report / "padded")})
    )
    assert padded == pytest.approx(packed, rel=1e-4)


def test_a_few_questions_can_be_learned(config, files):
    """Each asks for the word behind it in a short text, so the answers can be overfitted."""
    few = change(
        config,
        data={"train": [str(files / "train1.json")], "max_train_examples": 3, "dev": []},
        optimizer={"learning_rate": 3e-3, "schedule": "constant", "warmup": 0.0},
        train={"steps": 40, "batch_size": 8},
    )
    job = build(few)
    losses = []
    state = job.state
    batches = job.loader.batches(LoaderState())
    for _, batch in zip(range(40), batches, strict=False):
        state, metrics = job.train_step(state, batch.arrays)
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    batches.close()
    assert losses[0] > 2
    assert min(losses[-5:]) < losses[0] / 4


def test_without_unanswerable_questions_each_is_answered(config, files, tmp_path):
    data = {part: [str(files / f"{part}1.json")] for part in ("train", "dev")}
    job = build(change(config, data=data, qa={"scoring": "cmrc"}))
    job.report(job.state.params, tmp_path, 7)
    assert set(job.evaluate(job.state.params)) == {"exact_match", "f1", "total", "loss"}
    assert all(read(tmp_path / "predictions.json").values())
    assert not (tmp_path / "null_odds.json").exists()


def test_prediction_gives_what_evaluation_gives(report, files, tmp_path):
    paragraphs = read(files / "dev2.json")["data"][0]["paragraphs"]
    lines = [
        {"question": row["question"], "context": p["context"]}
        for p in paragraphs
        for row in p["qas"]
    ]
    bad = [{"question": "what"}, {"question": "\u200b", "context": "good"}]
    long = [{"question": "what was good of it at all", "context": "the plot"}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines + bad + long))
    counts = predict(str(report / "model"), str(source), str(tmp_path / "out.jsonl"), 8)
    assert counts == {"rows": 15, "errors": 2, "truncated": 1}
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    odds = list(read(report / "null_odds.json").values())
    predictions = list(read(report / "predictions.json").values())
    for line, got, odd, text in zip(lines, answers[:12], odds, predictions, strict=True):
        assert got["answer"] == text == line["context"][got["start"] : got["end"]]
        assert got["null_odds"] == pytest.approx(odd, abs=1e-4)
        assert 0 < got["score"] < 1
    assert answers[12]["line"] == 13
    assert "'context' is missing" in answers[12]["error"]
    assert answers[13] == {"error": "the question or the context has no token", "line": 14}
    assert answers[14]["truncated"]


MISTAKES = {
    "data.dataset=no/such (data.train_split=train): cannot be loaded": {
        "data": {"dataset": "no/such", "train": [], "dev": []}
    },
    "train.metric: found 'accuracy', expected one of exact_match, f1": {
        "train": {"metric": "accuracy"}
    },
    "data.train: found no files": {"data": {"train": []}},
    "load it with num_labels=2": {"model": {"config": {"num_labels": 3}}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, config):
    sections = {name: dict(fields) for name, fields in MISTAKES[message].items()}
    if "model" in sections:
        sections["model"]["config"] = config.model.config | sections["model"]["config"]
    with pytest.raises(InputError) as error:
        build(change(config, **sections))
    assert message in str(error.value)


def test_an_unknown_answer_is_not_in_the_loss(job, config, files, tmp_path):
    content = read(files / "dev2.json")
    paragraphs = content["data"][0]["paragraphs"]
    for row in paragraphs[0]["qas"]:
        for answer in row["answers"]:
            answer["answer_start"] = -1
    (tmp_path / "dev.json").write_text(json.dumps(content))
    without = build(change(config, data={"dev": [str(tmp_path / "dev.json")]}))
    values, all_known = (j.evaluate(j.state.params) for j in (without, job))
    assert values["total"] == all_known["total"]
    assert values["f1"] == pytest.approx(all_known["f1"])
    assert values["loss"] != pytest.approx(all_known["loss"])
    assert jax.numpy.isfinite(values["loss"])
