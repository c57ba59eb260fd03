"""Multiple choice: questions packed whole, judged by question, in SWAG's format and as lists."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answering import predict, read_lines

from jaxllm.config.checks import check
from jaxllm.config.fields import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from jaxllm.data.loader import LoaderState, TrainLoader
from jaxllm.data.questions import load_questions
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.models.outputs import HeadOutput
from jaxllm.runs import loop
from jaxllm.tasks import build
from jaxllm.tasks.evaluate import evaluate
from jaxllm.tasks.multiple_choice import by_question

COLUMNS = ["video-id", "sent1", "sent2", *(f"ending{i}" for i in range(4)), "label"]
SWAG = DataConfig(
    text="sent1",
    text_pair="sent2",
    choices=["ending0", "ending1", "ending2", "ending3"],
    max_length=64,
)
LISTS = DataConfig(text="context", choices=["choices"], max_length=64)


def question(i, rng):
    """(context, how the endings begin, four endings, the place of the right one).

    No two endings are alike: their scores would tie, and the order of a tie is rounding's.
    """
    texts = []
    while len(set(texts)) < 5:
        words = rng.choice(["good", "bad", "movie", "plot", "story"], (5, 3))
        texts = [" ".join(w[: 1 + rng.integers(3)]) for w in words]
    right = i % 4
    texts[1 + right] += " loved"
    return texts[0], "it was", texts[1:], right


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("questions")
    rng = np.random.default_rng(0)
    for part, count in {"train": 40, "dev": 21}.items():
        questions = [question(i, rng) for i in range(count)]
        with open(directory / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([["v", a, b, *endings, y] for a, b, endings, y in questions])
        lines = [
            {"context": a, "choices": [f"{b} {e}" for e in endings], "label": y}
            for a, b, endings, y in questions
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def load(files, tokenizer, tmp_path):
    """Questions of a file, by a DataConfig with other fields."""

    def load(data, name, **fields):
        data = replace(data, train=[str(files / name)], cache_dir=str(tmp_path), **fields)
        return load_questions(data, "train", tokenizer)

    return load


def texts_of(questions, tokenizer):
    """Each question's texts, as the tokenizer spells them."""
    parts = np.split(questions.tokens, questions.offsets[1:-1])
    texts = [tokenizer.decode(part) for part in parts]
    return [texts[i : i + questions.choices] for i in range(0, len(texts), questions.choices)]


def test_swag_and_lists_give_the_same_texts(load, files, tokenizer):
    swag, lists = load(SWAG, "train.csv"), load(LISTS, "train.jsonl")
    assert swag.choices == lists.choices == 4
    np.testing.assert_array_equal(swag.tokens, lists.tokens)
    np.testing.assert_array_equal(swag.labels, np.arange(40) % 4)
    np.testing.assert_array_equal(lists.labels, swag.labels)
    with open(files / "train.csv", encoding="utf-8") as file:
        for row, texts in zip(csv.DictReader(file), texts_of(swag, tokenizer), strict=True):
            assert texts == [
                f"[CLS] {row['sent1']} [SEP] {row['sent2']} {row[f'ending{i}']} [SEP]"
                for i in range(4)
            ]


@pytest.mark.parametrize("packing", [True, False])
def test_all_choices_of_a_question_are_in_one_row(packing, load):
    questions = load(SWAG, "train.csv", packing=packing)
    data = replace(SWAG, packing=packing)
    loader = TrainLoader(questions, data=data, batch_size=8, seed=0)
    seen = []
    batches = loader.batches(LoaderState())
    for _ in range(loader.steps_in_epoch(0)):
        batch = next(batches)
        arrays = {name: np.asarray(x) for name, x in batch.arrays.items()}
        height, per_row = arrays["labels"].shape
        heads = arrays["head_positions"].reshape(height, per_row, 4)
        numbers = iter(batch.example_rows - 1)
        for r, p in np.argwhere(arrays["label_weights"] > 0):
            i = next(numbers)
            seen.append(i)
            assert arrays["labels"][r, p] == questions.labels[i]
            for c in range(4):
                begin, end = questions.offsets[i * 4 + c : i * 4 + c + 2]
                segment = arrays["segment_ids"][r] == p * 4 + c + 1
                assert segment.argmax() == heads[r, p, c]
                np.testing.assert_array_equal(
                    arrays["input_ids"][r][segment], questions.tokens[begin:end]
                )
    batches.close()
    assert sorted(seen) == list(range(40))


def test_lengths_count_all_texts_of_a_question(load):
    questions = load(SWAG, "train.csv")
    by_hand = [questions.offsets[4 * i + 4] - questions.offsets[4 * i] for i in range(40)]
    np.testing.assert_array_equal(questions.lengths, by_hand)
    some = np.array([3, 39, 0])
    np.testing.assert_array_equal(questions.lengths_of(some), questions.lengths[some])


def test_scores_of_texts_become_logits_of_questions():
    scores = jnp.arange(24.0).reshape(2, 12)
    apply = by_question(lambda params, **inputs: HeadOutput(scores), 4)
    logits = apply(None).logits
    assert logits.shape == (2, 3, 4)
    np.testing.assert_array_equal(logits[1, 2], scores[1, 8:])


BAD = {
    "3 choices, not 4": {"context": "a movie", "choices": ["a", "b", "c"], "label": 0},
    "no list of choices, not 4": {"context": "a movie", "choices": "a", "label": 0},
    "missing choice": {"context": "a movie", "choices": ["a", "", "c", "d"], "label": 0},
    "unknown label '4'": {"context": "a movie", "choices": ["a", "b", "c", "d"], "label": 4},
    "missing label": {"context": "a movie", "choices": ["a", "b", "c", "d"], "label": None},
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_questions_stop_the_run_or_are_dropped(fault, load, files, tmp_path):
    good = (files / "train.jsonl").read_text().splitlines()
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join([*good[:5], json.dumps(BAD[fault]), *good[5:9]]) + "\n")
    with pytest.raises(InputError, match=rf"1 of 10 rows cannot be used.*{fault}.*row 6"):
        load(LISTS, file)
    dropped = load(LISTS, file, on_bad_row="drop")
    np.testing.assert_array_equal(dropped.labels, np.arange(9) % 4)
    assert dropped.report.dropped == {fault: 1}


def test_a_question_with_one_choice_too_long_goes_as_a_whole(load, files, tmp_path, tokenizer):
    good = (files / "train.jsonl").read_text().splitlines()
    long = {"context": "a movie", "choices": ["a", "b " * 20, "c", "d"], "label": 0}
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join([*good[:5], json.dumps(long), *good[5:9]]) + "\n")
    dropped = load(LISTS, file, truncation="drop")
    whole = load(LISTS, "train.jsonl", max_train_examples=9)
    np.testing.assert_array_equal(dropped.tokens, whole.tokens)
    np.testing.assert_array_equal(dropped.offsets, whole.offsets)
    cut = load(LISTS, file)
    assert cut.report.truncated == 1
    assert np.diff(cut.offsets)[21] == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": ["context"]}, "row 1: 'context' .* expected a list of two or more choices"),
        ({"choices": ["answers"]}, r"no column 'answers' \(data.choices\)"),
        ({"max_length": 19}, "expected at least 20: the 4 choices of a question share it"),
    ],
)
def test_choices_that_cannot_be_read_are_named(fields, message, load):
    with pytest.raises(InputError, match=message):
        load(LISTS, "train.jsonl", **fields)


@pytest.fixture(scope="module")
def config(files, tiny_bert_dir, tmp_path_factory):
    return Config(
        model=ModelConfig(path=str(tiny_bert_dir), task="multiple-choice"),
        data=replace(
            SWAG,
            train=[str(files / "train.csv")],
            dev=[str(files / "dev.csv")],
            cache_dir=str(tmp_path_factory.mktemp("cache")),
        ),
        train=TrainConfig(batch_size=16, epochs=1.0, eval_batch_size=8),
        run=RunConfig(dir=str(tmp_path_factory.mktemp("run")), trackers=[], progress=False),
    )


@pytest.fixture(scope="module")
def finished(config):
    return config, loop.train(config, build.build)


def test_training_evaluates_every_question_once(finished):
    config, summary = finished
    rows = read_lines(Path(config.run.dir) / "predictions.jsonl")
    assert [row["row"] for row in rows] == list(range(1, 22))
    assert [row["label"] for row in rows] == [str(i % 4) for i in range(21)]
    hits = np.mean([row["label"] == row["predicted"] for row in rows])
    assert summary["eval/accuracy"] == pytest.approx(hits)
    assert not {"eval/f1", "eval/f1_macro"} & summary.keys()


def test_the_saved_model_is_judged_alike(finished):
    config, summary = finished
    model = replace(config.model, path=f"{config.run.dir}/model")
    data = replace(config.data, packing=False)
    values = evaluate(replace(config, model=model, data=data))
    assert values["accuracy"] == summary["eval/accuracy"]
    assert values["loss"] == pytest.approx(summary["eval/loss"], rel=1e-5)


def test_prediction_answers_as_evaluation_did(finished, files, tmp_path):
    config, _ = finished
    with open(files / "dev.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    bad = ["[1]", json.dumps({"sent1": "a movie", "ending0": "x"})]
    (tmp_path / "in.jsonl").write_text("\n".join([*map(json.dumps, rows), *bad]) + "\n")
    predict(f"{config.run.dir}/model", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    *answers, first, second = read_lines(tmp_path / "out.jsonl")
    judged = read_lines(Path(config.run.dir) / "predictions.jsonl")
    assert [str(answer["label"]) for answer in answers] == [row["predicted"] for row in judged]
    for row, answer, expected in zip(rows, answers, judged, strict=True):
        assert answer["choice"] == row[f"ending{answer['label']}"]
        assert answer["score"] == pytest.approx(expected["probability"], abs=1e-5)
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert first["line"] == 22
    assert "ending1" in second["error"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"choices": None}}, "data.choices: found None"),
        ({"data": {"choices": ["a", "a"]}}, "data.choices"),
        ({"data": {"choices": ["sent1", "a"]}}, "data.choices"),
        ({"model": {"task": "sequence-classification"}}, "data.choices: found .* expected null"),
        ({"model": {"problem_type": "regression"}}, "model.problem_type"),
        ({"data": {"labels": ["0", "1"]}}, "data.labels: found .* expected null"),
        ({"train": {"class_weights": [1.0, 2.0]}}, "train.class_weights: .* expected null"),
    ],
)
def test_settings_that_do_not_go_together(sections, message, config):
    parts = {name: replace(getattr(config, name), **fields) for name, fields in sections.items()}
    with pytest.raises(InputError, match=message):
        check(replace(config, **parts))


def test_packed_and_padded_questions_have_the_same_loss(config):
    losses = []
    for packing in (True, False):
        data = replace(config.data, packing=packing, buckets=[64])
        job = build.build(replace(config, data=data, train=replace(config.train, batch_size=48)))
        losses.append(job.evaluate(job.state.params)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert jax.tree.leaves(job.state.params)
