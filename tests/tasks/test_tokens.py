"""Token classification from CoNLL files to entities: every word counts, and the parts agree."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from answering import predict, read_lines
from configurations import change
from sklearn import metrics as sk

from jaxllm.config import checks
from jaxllm.config.fields import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.data import loader
from jaxllm.data.tags import scheme_of
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.metrics.entities import entity_metrics
from jaxllm.prediction.inputs import InputFormat, RowError
from jaxllm.prediction.token_classification import split_words, words_of
from jaxllm.pretrained import hf
from jaxllm.tasks import evaluation, tokens
from jaxllm.tasks.build import build
from jaxllm.tasks.evaluate import evaluate

FIRST, LAST, PLACES = ["anna", "zoe"], ["lee", "kim"], ["york", "paris"]
OTHERS = [
    "the",
    "movie",
    "was",
    "good",
    "and",
    "we",
    "loved",
    "it",
    "in",
    "for",
    ",",
    "(",
    ")",
    "!",
]
NAMES = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]


def sentence(rng):
    """Words and tags: a name of one or two words, 'new' and a place, others."""
    person = [rng.choice(FIRST), rng.choice(LAST)][: rng.integers(1, 3)]
    parts = [(person, "PER"), (["new", rng.choice(PLACES)], "LOC")]
    parts += [([word], None) for word in rng.choice(OTHERS, rng.integers(1, 6))]
    words, tags = [], []
    for i in rng.permutation(len(parts)):
        found, kind = parts[i]
        words += map(str, found)
        tags += [f"{'I' if j else 'B'}-{kind}" if kind else "O" for j in range(len(found))]
    return words, tags


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("conll")
    rng = np.random.default_rng(0)
    for part, count in {"train": 96, "dev": 21}.items():
        blocks = [
            "".join(f"{w}\t{t}\n" for w, t in zip(*sentence(rng), strict=True))
            for _ in range(count)
        ]
        (directory / f"{part}.conll").write_text("\n".join(blocks), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def base_config(files, tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    attributes = {name: getattr(tiny_bert_config, name) for name in names}
    size = len((tiny_tokenizer_dir / "vocab.txt").read_text().splitlines())
    attributes |= {"model_type": "bert", "vocab_size": size, "max_position_embeddings": 64}
    attributes["num_hidden_layers"] = 1
    attributes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return Config(
        model=ModelConfig(
            task="token-classification", config=attributes, tokenizer=str(tiny_tokenizer_dir)
        ),
        data=DataConfig(
            train=[str(files / "train.conll")],
            dev=[str(files / "dev.conll")],
            max_length=64,
            buckets=[64],
            cache_dir=str(tmp_path_factory.mktemp("cache")),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.0, schedule="constant"),
        train=TrainConfig(batch_size=24, steps=60, eval_batch_size=16),
        run=RunConfig(dir=str(tmp_path_factory.mktemp("run"))),
    )


@pytest.fixture(scope="module")
def trained(base_config):
    """(job, parameters) after 60 steps."""
    job = build(base_config)
    state, batches = job.state, job.loader.batches(loader.LoaderState())
    for _ in range(job.total_steps):
        state, metrics = job.train_step(state, next(batches).arrays)
        jax.block_until_ready(metrics)  # many steps under way on 8 devices wait for each other
    batches.close()
    return job, state.params


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    trained[0].export(trained[1], directory)
    return str(directory)


def test_a_small_model_learns_the_entities(trained):
    job, params = trained
    values = job.evaluate(params)
    assert job.metric == "f1"
    assert job.higher_is_better
    assert values["f1"] > 0.95
    assert values["loss"] < 0.1
    assert {"precision", "recall", "accuracy", "f1/PER", "f1/LOC"} < values.keys()


def test_evaluate_agrees_whatever_the_mesh_and_the_batches(trained, saved, base_config, tmp_path):
    expected = trained[0].evaluate(trained[1])
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    config = change(
        config,
        run={"dir": str(tmp_path)},
        mesh=vars(MeshConfig(data=2, fsdp=2, tensor=2)),
        data={"packing": False},
        train={"eval_batch_size": 5, "label_smoothing": 0.3},
    )
    assert evaluate(config) == pytest.approx(expected, abs=1e-5)
    report = (tmp_path / "evaluate" / "report.txt").read_text(encoding="utf-8")
    assert report.startswith(f"model {saved}, 20")
    assert "\n21 rows read, 21 kept\n" in report
    assert "\nmajority class 'O': accuracy 0." in report
    assert "of them 0 without a token" in report
    lines = read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    dev = Path(base_config.data.dev[0]).read_text(encoding="utf-8")
    assert lines[1]["row"] == dev.split("\n").index("") + 2
    blocks = (tmp_path / "evaluate" / "predictions.conll").read_text(encoding="utf-8")
    assert "\n".join(line.rpartition("\t")[0] for line in blocks.split("\n")) == dev
    tags = [line.rpartition("\t")[2] for line in blocks.splitlines() if line]
    assert tags == [tag for line in lines for tag in line["predicted"]]
    config = hf.load_config(saved)
    assert list(config.id2label.values()) == NAMES
    assert config.architectures == ["BertForTokenClassification"]


def test_words_without_a_token_count_as_outside(saved, base_config, tmp_path):
    """The last words are cut off, or nothing to the tokenizer; recall suffers for them."""
    text = "the O\nanna B-PER\nin O\nnew B-LOC\nparis I-LOC\n\n\u200b B-PER\n"
    (tmp_path / "dev.conll").write_text(text, encoding="utf-8")
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    config = change(config, run={"dir": str(tmp_path)}, data={"dev": [str(tmp_path / "dev.conll")]})
    whole = evaluate(config)
    assert whole["recall"] == pytest.approx(2 / 3)
    values = evaluate(change(config, data={"max_length": 7}))  # the an ##n ##a in
    assert values["recall"] == pytest.approx(1 / 3)
    report = (tmp_path / "evaluate" / "report.txt").read_text(encoding="utf-8")
    assert "1 truncated" in report
    assert "6 words, of them 3 without a token" in report
    first, second = read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    assert first["predicted"][1] == "B-PER"
    assert first["predicted"][3:] == second["predicted"] * 2 == ["O", "O"]
    tags, predicted = ([row[name] for row in (first, second)] for name in ("tags", "predicted"))
    counted = entity_metrics(tags, predicted, scheme_of(NAMES, "auto", "here"), NAMES)
    assert counted == {name: values[name] for name in counted}
    assert [share is None for share in first["probability"]] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("fault", ["twice", "weights"])
def test_a_word_counted_twice_is_an_error(fault, trained, monkeypatch):
    original = evaluation.eval_batches

    def faulty(*args, **options):
        for arrays, index in original(*args, **options):
            if fault == "weights":
                arrays = arrays | {"label_weights": arrays["label_weights"] * 2}
            yield from [(arrays, index)] * (2 if fault == "twice" else 1)

    monkeypatch.setattr(evaluation, "eval_batches", faulty)
    with pytest.raises(RuntimeError, match="evaluation must see each of"):
        trained[0].evaluate(trained[1])


def test_diverged_parameters_are_told(trained):
    params = jax.tree.map(lambda x: x * np.nan, trained[1])
    with pytest.raises(InputError, match="words are not finite"):
        trained[0].evaluate(params)


def run_predict(model, rows, tmp_path):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    counts = predict(model, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), 8)
    return read_lines(tmp_path / "out.jsonl"), counts


def test_predict_gives_entities_with_their_characters(saved, tmp_path):
    text = "The movie, Anna Lee  loved (new York)!"
    rows = [
        {"text": text},
        json.dumps(text),
        {"tokens": ["the", "Anna", "lee", "in", "new", "paris"]},
    ]
    rows += ["no json", {"other": 1}, {"tokens": []}, {"tokens": ["a", ""]}, {"tokens": ["a", 3]}]
    answers, counts = run_predict(saved, rows, tmp_path)
    assert counts == {"rows": 8, "errors": 5, "truncated": 0}
    found = [
        {key: entity[key] for key in ("type", "text", "start", "end")}
        for entity in answers[0]["entities"]
    ]
    assert found == [
        {"type": "PER", "text": "Anna Lee", "start": 11, "end": 19},
        {"type": "LOC", "text": "new York", "start": 28, "end": 36},
    ]
    assert answers[1] == answers[0]
    for entity in answers[0]["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert 0.5 < entity["score"] <= 1
    spans = [(e["text"], e["start"], e["end"]) for e in answers[2]["entities"]]
    assert spans == [("Anna lee", 4, 12), ("new paris", 16, 25)]
    for answer, line, part in zip(
        answers[3:],
        range(4, 9),
        ["JSON", "'text'", "list", "word 2: missing", "of type int"],
        strict=True,
    ):
        assert answer["line"] == line
        assert part in answer["error"]


def test_lines_of_which_none_can_be_answered(saved, tmp_path):
    answers, counts = run_predict(saved, ["no json", {"other": 1}], tmp_path)
    assert counts == {"rows": 2, "errors": 2, "truncated": 0}
    assert [answer["line"] for answer in answers] == [1, 2]


def test_entities_of_models_from_elsewhere_may_begin_with_i(saved, tmp_path):
    elsewhere = tmp_path / "model"
    shutil.copytree(saved, elsewhere)
    (elsewhere / "jaxllm.json").unlink()
    config = json.loads((elsewhere / "config.json").read_text())
    swapped = {"B-PER": "I-PER", "I-PER": "B-PER"}  # what it calls the first word of a person
    config["id2label"] = {i: swapped.get(x, x) for i, x in config["id2label"].items()}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (elsewhere / "config.json").write_text(json.dumps(config))
    answers, _ = run_predict(str(elsewhere), [{"text": "the movie , anna loved"}], tmp_path)
    assert [(e["type"], e["text"]) for e in answers[0]["entities"]] == [("PER", "anna")]
    shutil.copy(Path(saved, "jaxllm.json"), elsewhere)
    answers, _ = run_predict(str(elsewhere), [{"text": "the movie , anna loved"}], tmp_path)
    assert answers[0]["entities"] == []


def test_predict_equals_evaluation_and_tells_what_it_cut(saved, base_config, tmp_path):
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    evaluate(change(config, run={"dir": str(tmp_path)}))
    lines = read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    long = {"tokens": ["the"] * 70 + ["anna"]}
    answers, counts = run_predict(
        saved, [*({"tokens": x["tokens"]} for x in lines), long], tmp_path
    )
    assert counts["truncated"] == 1
    assert answers[-1]["truncated"] is True
    assert not [entity for entity in answers[-1]["entities"] if entity["text"] == "anna"]
    for line, answer in zip(lines, answers[:-1], strict=True):
        starts = np.cumsum([0, *(len(word) + 1 for word in line["tokens"])])
        for entity in answer["entities"]:
            begin = int(np.flatnonzero(starts == entity["start"])[0])
            end = int(np.flatnonzero(starts == entity["end"] + 1)[0])
            kind = entity["type"]
            assert line["predicted"][begin:end] == [f"B-{kind}", *[f"I-{kind}"] * (end - begin - 1)]
            assert entity["score"] == pytest.approx(
                np.mean(line["probability"][begin:end]), abs=1e-5
            )
        count = sum(tag.startswith("B-") for tag in line["predicted"])
        assert len(answer["entities"]) == count


def renamed(saved, directory, names, **form):
    """A copy of a saved model whose labels have these names; `form` goes into its jaxllm.json,
    which a model from elsewhere does not have.
    """
    shutil.copytree(saved, directory)
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (directory / "config.json").write_text(json.dumps(config))
    content = json.loads((directory / "jaxllm.json").read_text()) | form
    (directory / "jaxllm.json").write_text(json.dumps(content))
    if not form:
        (directory / "jaxllm.json").unlink()
    return str(directory)


def test_plain_tags_are_judged_word_by_word(saved, base_config, tmp_path):
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    config = change(config, model={"tags": "plain"}, run={"dir": str(tmp_path)})
    values = evaluate(config)
    lines = read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    truth = [tag for line in lines for tag in line["tags"]]
    predicted = [tag for line in lines for tag in line["predicted"]]
    expected = sk.classification_report(truth, predicted, output_dict=True)
    assert values["accuracy"] == pytest.approx(expected["accuracy"])
    assert values["f1_macro"] == pytest.approx(expected["macro avg"]["f1-score"])
    assert values["f1/B-PER"] == pytest.approx(expected["B-PER"]["f1-score"])
    assert values.keys() == {
        *("accuracy", "f1_macro", "precision_macro", "recall_macro", "loss"),
        *(f"f1/{name}" for name in NAMES),
    }
    report = (tmp_path / "evaluate" / "report.txt").read_text(encoding="utf-8")
    assert [line.split()[0] for line in report.splitlines()[-6:]] == ["tag", *NAMES]
    # A word that was cut off has no predicted tag, which is wrong.
    cut = evaluate(change(config, data={"max_length": 7}))
    lines = read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    hits = [a == b for x in lines for a, b in zip(x["tags"], x["predicted"], strict=True)]
    assert cut["accuracy"] == pytest.approx(np.mean(hits))
    assert [None in line["predicted"] for line in lines] == [
        None in line["probability"] for line in lines
    ]
    assert "which count as wrong" in (tmp_path / "evaluate" / "report.txt").read_text(
        encoding="utf-8"
    )
    assert "\t_\n" in (tmp_path / "evaluate" / "predictions.conll").read_text(encoding="utf-8")


def test_words_without_a_tag_are_not_judged(saved, base_config, tmp_path):
    rows = [["B-PER", "O", "O"], ["B-PER", None, "O"], [None, "O", None]]
    words = ["anna", "loved", "it"]
    text = "".join(json.dumps({"text": words, "label": row}) + "\n" for row in rows)
    (tmp_path / "dev.jsonl").write_text(text)
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    config = change(config, data={"dev": [str(tmp_path / "dev.jsonl")]}, run={"dir": str(tmp_path)})
    values = evaluate(config)
    assert (values["recall"], values["precision"]) == (1, 1)  # not 2 of 3, as anna is thrice there
    report = (tmp_path / "evaluate" / "report.txt").read_text(encoding="utf-8")
    assert "6 words, of them 0 without a token" in report
    assert [
        line["tags"] for line in read_lines(tmp_path / "evaluate" / "predictions.jsonl")
    ] == rows
    plain = evaluate(change(config, model={"tags": "plain"}))
    assert plain["accuracy"] == 1


def test_plain_tags_are_chosen_by_accuracy_and_remembered(base_config, tmp_path):
    text = "the DET\nmovie NOUN\n\nit PRON\n"
    (tmp_path / "a.conllu").write_text(text)
    files = {"train": [str(tmp_path / "a.conllu")], "dev": [str(tmp_path / "a.conllu")]}
    tokenizer = load_tokenizer(base_config.model.tokenizer)
    task = tokens.prepare(change(base_config, data=files), tokenizer)
    assert task.metric == "accuracy"
    assert list(task.model.config.id2label.values()) == ["DET", "NOUN", "PRON"]
    task.save_extras(tmp_path)
    assert json.loads((tmp_path / "jaxllm.json").read_text())["tags"] == "plain"
    with pytest.raises(InputError, match=r"train.metric: found 'f1', expected one of accuracy"):
        tokens.prepare(change(base_config, data=files, train={"metric": "f1"}), tokenizer)
    by_loss = change(base_config, train={"metric": "loss"})
    assert tokens.prepare(by_loss, tokenizer).metric == "loss"


def test_prediction_of_plain_tags_answers_for_each_word(saved, tmp_path):
    names = ["X", "ADJ", "NOUN", "ADP", "PRON"]
    elsewhere = renamed(saved, tmp_path / "elsewhere", names)
    text = "Anna loved (new York)"
    long = {"tokens": ["anna"] * 70}
    answers, counts = run_predict(elsewhere, [{"text": text}, long], tmp_path)
    found = answers[0]["tags"]
    assert [(x["tag"], x["text"]) for x in found] == [
        ("NOUN", "Anna"),
        ("X", "loved"),
        ("X", "("),
        ("ADJ", "new"),
        ("ADP", "York"),
        ("X", ")"),
    ]
    for word in found:
        assert text[word["start"] : word["end"]] == word["text"]
        assert 0.5 < word["score"] <= 1
    assert counts["truncated"] == 1
    last = answers[1]["tags"][-1]
    assert last == {"tag": None, "text": "anna", "start": 345, "end": 349}
    # Tags that could mark entities are plain where training said so.
    ours = renamed(saved, tmp_path / "ours", NAMES, tags="plain")
    answers, _ = run_predict(ours, [{"text": text}], tmp_path)
    assert [x["tag"] for x in answers[0]["tags"]] == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    with_scheme = renamed(saved, tmp_path / "bilou", ["O", "B-LOC", "U-PER", "L-LOC", "L-PER"])
    answers, _ = run_predict(with_scheme, [{"text": text}], tmp_path)
    assert [(x["type"], x["text"]) for x in answers[0]["entities"]] == [
        ("PER", "Anna"),
        ("LOC", "new York"),
    ]


def test_evaluation_remembers_what_the_tags_mean(saved, base_config, tmp_path):
    config = change(base_config, model={"path": saved, "config": {}, "tokenizer": None})
    config = change(config, run={"dir": str(tmp_path)}, train={"metric": None})
    plain = renamed(saved, tmp_path / "plain", NAMES, tags="plain")
    assert "f1_macro" in evaluate(change(config, model={"path": plain}))
    assert "f1" in evaluate(change(config, model={"path": plain, "tags": "entities"}))
    other = renamed(saved, tmp_path / "other", NAMES, tags="some")
    with pytest.raises(InputError, match=r"tags: found 'some', expected \['auto', 'entities'"):
        evaluate(change(config, model={"path": other}))


def test_bare_types_of_models_from_elsewhere_are_entities(saved, tmp_path):
    names = ["O", "LOC", "PER", "LOC2", "PER2"]  # as O, LOC, PER, but no two labels have one name
    model = renamed(saved, tmp_path / "model", names)
    answers, _ = run_predict(model, [{"text": "anna and anna , anna anna in new"}], tmp_path)
    found = [(x["type"], x["text"]) for x in answers[0]["entities"]]
    assert found == [("PER", "anna"), ("PER", "anna"), ("PER", "anna anna"), ("LOC", "new")]


SPLIT = {
    "U.S.-based (Kyoto).": ["U.S.-based", "(", "Kyoto", ")", "."],
    "我在 Paris读书。": ["我", "在", "Paris", "读", "书", "。"],
    "don't -- stop!?": ["don't", "-", "-", "stop", "!", "?"],
    "हिन्दी, café": ["हिन्दी", ",", "café"],
    "...": [".", ".", "."],
}


@pytest.mark.parametrize("text", SPLIT)
def test_text_is_divided_into_words(text):
    found = split_words(text)
    assert found.words == SPLIT[text]
    for word, start in zip(found.words, found.starts, strict=True):
        assert text[start : start + len(word)] == word


def test_a_text_without_words_is_refused():
    with pytest.raises(RowError, match="empty"):
        words_of({"text": " "}, InputFormat())


MISTAKES = {
    "model.problem_type: found 'regression'": {"model": {"problem_type": "regression"}},
    "data.text_pair: found 'b'": {"data": {"text_pair": "b"}},
    "data.streaming: found True": {"data": {"streaming": True}},
    "data.on_bad_row: found 'repair'": {
        "model": {"task": "sequence-classification"},
        "data": {"on_bad_row": "repair"},
    },
    "model.tags: found 'plain', expected auto, as model.task is": {
        "model": {"task": "sequence-classification", "tags": "plain"}
    },
    "train.metric: found 'f2', expected one of precision": {"train": {"metric": "f2"}},
    "train.class_weights: found 2 weights, expected 5": {"train": {"class_weights": [1.0, 2.0]}},
    "data.labels: found O, NOUN": {"data": {"labels": ["O", "NOUN"]}},
    "data.max_length: found 65": {"data": {"max_length": 65}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, base_config):
    config = change(base_config, **MISTAKES[message])

    def checked() -> None:
        checks.check(config)
        build(config)

    with pytest.raises(InputError) as error:
        checked()
    assert message in str(error.value)


def test_a_model_whose_labels_are_no_tags_is_refused(saved, base_config, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(saved, path)
    description = json.loads((path / "config.json").read_text())
    for name in ("id2label", "label2id"):
        del description[name]
    (path / "config.json").write_text(json.dumps(description | {"num_labels": 5}))
    config = change(base_config, model={"path": str(path), "config": {}, "tokenizer": None})
    with pytest.raises(InputError, match="the labels: found LABEL_0"):
        evaluate(change(config, run={"dir": str(tmp_path)}))
    with pytest.raises(InputError, match=r"the model's labels \(id2label\): found LABEL_0"):
        run_predict(str(path), [], tmp_path)
    named = change(config, run={"dir": str(tmp_path)}, data={"labels": NAMES})
    assert evaluate(named)["f1"] > 0.95
