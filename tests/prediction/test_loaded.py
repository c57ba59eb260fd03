"""`jaxllm.load`: rows of Python answered as `jaxllm predict` answers lines; vectors."""

import copy
import json
import logging

import jax
import numpy as np
import pandas as pd
import pytest
from answering import predict

import jaxllm
from jaxllm import models
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.nn.pooling import Pooling
from jaxllm.prediction import batched
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf, sentence_transformers
from jaxllm.tasks.registry import TASKS
from jaxllm.trees import map_params

TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}
# A model's format, and rows for it: good ones in all their forms, and then a bad one.
ROWS = {
    "sequence-classification": (
        {"text": "a", "text_pair": "b"},
        [("we loved it", "so good"), {"a": "we loved it", "b": "so good"}, ["it", "broke"], "it"],
    ),
    "token-classification": (
        {},
        [["we", "loved", "it"], ("we", "loved", "it"), "we loved it", {"tokens": ["we"]}, []],
    ),
    "sentence-embedding": ({}, ["we loved it", {"text": "so good"}, 3]),
    "question-answering": (
        {
            "text": "question",
            "text_pair": "context",
            "qa": {"max_question_length": 12, "doc_stride": 8},
        },
        [("who loved it", "we loved it"), {"question": "who", "context": "we two"}, ("who", "")],
    ),
    "multiple-choice": (
        {"choices": ["ends"]},
        [{"text": "we loved", "ends": ("it", "the plot", "her")}, {"text": "it", "ends": []}],
    ),
    "masked-lm": ({}, ["we [MASK] it", "we loved it"]),
    "pretraining": ({}, ["[MASK] loved it", None]),
    "causal-lm": ({}, ["we loved it", {"text": "so good"}, 3]),
}


@pytest.fixture(scope="module")
def save_model(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def save(task, **form):
        config = copy.deepcopy(tiny_bert_config)
        config.vocab_size = len(tokenizer)
        config.is_decoder = task == "causal-lm"
        if task == "token-classification":
            config.id2label, config.label2id = TAGS, {name: i for i, name in TAGS.items()}
        directory = tmp_path_factory.mktemp(task) / "model"
        rng = np.random.default_rng(0)
        params = map_params(
            lambda path, x: rng.normal(path.endswith("scale"), 0.3, x.shape).astype(np.float32),
            models.module_parts(config, TASKS[task].head)[1],
        )
        hf.save_pretrained(directory, params, config, TASKS[task].head, tokenizer=tokenizer)
        InputFormat(task=task, max_length=64, **form).save(directory)
        return directory

    return save


@pytest.fixture(scope="module")
def classifier(save_model):
    return jaxllm.load(save_model("sequence-classification"))


def test_every_task_is_here():
    assert ROWS.keys() == TASKS.keys()


@pytest.mark.parametrize("task", ROWS)
def test_rows_are_answered_as_lines_are(task, save_model, tmp_path):
    form, rows = ROWS[task]
    path = save_model(task, **form)
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(str(path), str(lines), str(tmp_path / "out.jsonl"))
    expected = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert jaxllm.load(path)(rows) == expected
    *good, bad = expected
    assert not [answer for answer in good if "error" in answer]
    assert bad.keys() == {"error", "line"}
    assert bad["line"] == len(rows)


def test_a_pair_is_one_in_every_form(save_model):
    model = jaxllm.load(save_model("sequence-classification", text="a", text_pair="b"))
    one, two, other, error = model(ROWS["sequence-classification"][1])
    assert one == two != other
    assert error["error"] == "the column 'b' is missing, found 'a'"


def test_rows_come_from_anything_that_has_rows(classifier):
    texts = ["we loved it", "it broke"]
    expected = classifier(texts)
    assert [answer["label"] in ("LABEL_0", "LABEL_1") for answer in expected] == [True, True]
    assert classifier(tuple(texts)) == classifier(iter(texts)) == expected
    assert classifier(np.array(texts)) == classifier(pd.Series(texts)) == expected
    assert classifier(pd.DataFrame({"text": texts}).to_dict("records")) == expected
    assert classifier([]) == classifier(iter(())) == []


@pytest.mark.parametrize("call", ["__call__", "encode"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "we loved it",
            r"found one str, expected a list of rows; put one row in brackets: \[row\]",
        ),
        (b"we loved it", "found one bytes, expected a list of rows"),
        ({"text": "we loved it"}, "found one dict, expected a list of rows"),
        (pd.DataFrame({"text": ["a"]}), r"found a table \(DataFrame\), .*to_dict\('records'\)"),
        (None, "found NoneType, expected a list of rows"),
        (7, "found int, expected a list of rows"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_list_of_rows_is_refused(call, rows, message, classifier):
    with pytest.raises(InputError, match=message):
        getattr(classifier, call)(rows)


def test_errors_stand_in_their_places_and_count_on_behind_a_window(classifier, monkeypatch):
    monkeypatch.setattr(batched, "WINDOW_BATCHES", 1)
    size = classifier.predictor.window
    rows = ["good"] * size + [None, "good", 3.5, ["good"]]
    answers = classifier(rows)
    assert len(answers) == len(rows)
    assert [(answer["line"], answer["error"]) for answer in answers if "error" in answer] == [
        (size + 1, "expected an object with the column 'text', found null"),
        (size + 3, "expected an object with the column 'text', found a number"),
        (size + 4, "expected an object with the column 'text', found a list"),
    ]
    assert answers[size + 1] == answers[0]


def test_new_lengths_compile_nothing(classifier, caplog):
    model = jaxllm.load(classifier.saved.directory)

    def compiled(call):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            call()
        return sum(message.startswith("Compiling") for message in caplog.messages)

    def text(length):
        return " ".join(["good"] * length)

    lengths = [3, 20, 40]  # one for each of the lengths 16, 32 and 64
    few, many = jax.device_count(), jax.device_count() + 1
    assert (
        compiled(lambda: [model([text(n)] * count) for n in lengths for count in (few, many)]) == 6
    )
    others = [text(n) for n in range(1, 90, 3)]
    assert compiled(lambda: [model(others), model(others[:5]), model([])]) == 0
    assert compiled(lambda: [model.encode([text(n)] * few) for n in lengths]) == 3
    assert compiled(lambda: model.encode(others[:7])) == 0


@pytest.mark.parametrize("normalize", [None, True, False])
def test_vectors_are_pooled_and_scaled(normalize, save_model):
    """Of any model: those of a masked language model, which has no pooler."""
    path = save_model("masked-lm")
    model = jaxllm.load(path)
    texts = ["we loved it", "it broke", "so very good and the story is not bad"]
    found = model.encode(texts, normalize=normalize)
    assert (found.dtype, found.shape) == (np.float32, (3, 32))
    reference = jaxllm.AutoModelForMaskedLM.from_pretrained(path)
    for text, vector in zip(texts, found, strict=True):
        ids = np.array([load_tokenizer(path)(text)["input_ids"]])
        states = reference(ids, output_hidden_states=True).hidden_states[-1]
        mean = np.asarray(states)[0].mean(axis=0)
        wanted = mean if normalize is False else mean / np.linalg.norm(mean)
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_vectors_are_made_as_the_files_say(save_model):
    path = save_model("sentence-embedding")
    pooling = Pooling("cls", normalize=False, width=8)
    sentence_transformers.write(path, pooling, width=32, max_length=64)
    model = jaxllm.load(path)
    texts = ["we loved it", "it broke"]
    found = model.encode(texts)
    assert found.shape == (2, 8)
    assert model.encode([]).shape == (0, 8)
    base = jaxllm.AutoModel.from_pretrained(path)
    ids = np.array([load_tokenizer(path)(texts[0])["input_ids"]])
    np.testing.assert_allclose(
        found[0], np.asarray(base(ids).last_hidden_state)[0, 0, :8], atol=1e-5
    )
    shown = np.array([answer["embedding"] for answer in model(texts)])
    np.testing.assert_allclose(found, shown, rtol=1e-5)  # answers have six digits
    unit = model.encode(texts, normalize=True)
    assert not np.allclose(found, unit, atol=1e-3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["good", " "], r"texts\[1\]: the column 'text': the text is empty"),
        (["good", "bad", None], r"texts\[2\]: expected an object with the column 'text'"),
        ([("good", "bad")], r"texts\[0\]: expected an object .* found a list"),
    ],
)
def test_a_text_without_a_vector_is_refused(texts, message, classifier):
    with pytest.raises(InputError, match=message):
        classifier.encode(texts)


def test_type_and_size_are_as_asked_for_and_shown(classifier, save_model):
    path = save_model("sequence-classification")
    half = jaxllm.load(path, batch_size=3, dtype="bfloat16")
    devices = jax.device_count()
    shown = f"jaxllm.load('{path}'): sequence-classification, at most 64 tokens, "
    assert repr(half) == f"{shown}batches of {devices}, bfloat16"
    assert "float32" in repr(classifier)
    one, other = (model(["we loved it"])[0]["score"] for model in (half, classifier))
    assert one != other
    assert one == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: found 0, expected at least 1"),
        ({"batch_size": 10**9}, "batch_size: a batch of 1000000000 rows would take"),
        ({"batch_size": 1.5}, "batch_size: found 1.5, expected a whole number"),
        ({"batch_size": float("nan")}, "batch_size: found nan, expected a whole number"),
        ({"batch_size": "8"}, "batch_size: found '8', expected a whole number"),
        ({"batch_size": None}, "batch_size: found None, expected a whole number"),
        ({"batch_size": np.int64(0)}, "batch_size: found 0, expected at least 1"),
        ({"dtype": "int8"}, "dtype"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_refused(options, message, save_model):
    path = save_model("sequence-classification")
    with pytest.raises(InputError, match=message):
        jaxllm.load(path, **options)
    with pytest.raises(InputError, match="no_model"):
        jaxllm.load(path / "no_model")
