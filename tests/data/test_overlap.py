"""Rows whose text is in both parts are counted, and the first of each are named."""

import json

import numpy as np
import pytest

from jaxllm.config.fields import Config, QAConfig, RunConfig, TrainConfig
from jaxllm.config.reading import DataConfig, ModelConfig
from jaxllm.data.corpus import Examples, ReadReport
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.rows import text_hash
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.tasks.registry import TASKS


def examples(*texts, rows):
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    none = np.zeros(0, np.int64)
    return Examples(none, none, none, None, np.array(rows), ReadReport(), hashes=hashes)


def test_the_first_three_of_each_part_are_named(caplog):
    train = examples("x", "a", "b ", "c", "d", "a", rows=[1, 2, 3, 5, 7, 8])
    dev = examples("d", "y", "b", " a\n", "a", "c", rows=[11, 12, 13, 14, 16, 17])
    warn_of_overlap(train, dev)
    assert "data.dev: 5 of 6 rows have the text of one in data.train" in caplog.text
    assert "(row 11, 13, 14; in data.train row 7, 3, 2)" in caplog.text
    caplog.clear()
    warn_of_overlap(train, examples("A", "z", rows=[1, 2]))
    warn_of_overlap(train, None)
    warn_of_overlap(None, dev)
    assert not caplog.text


def test_texts_are_told_apart_by_where_they_end():
    hashes = {
        text_hash(*texts) for texts in (("a", "b"), ("a b",), ("ab",), ("", "ab"), ("b", "a"))
    }
    assert len(hashes) == 5
    assert text_hash(" a", "b\n") == text_hash("a", "b")


def rows(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def asked(context, question, name):
    answers = [{"text": context.split()[0], "answer_start": 0}]
    row = {"id": name, "question": question, "answers": answers}
    return {"context": context, "qas": [row]}


LONG = "good film " * 50
CASES = {  # task -> training part, dev part, settings, and the rows that are named
    "sequence-classification": (
        rows(*({"text": t, "label": x} for t, x in (("good", 0), ("bad", 1), (LONG, 1)))),
        rows(*({"text": t, "label": 1} for t in (LONG + "x", "fine", "bad", "bad"))),
        {},
        "2 of 4 rows have the text of one in data.train (row 3, 4; in data.train row 2, 2)",
    ),
    "pairs": (
        rows(*({"text": "good", "b": b, "label": i} for i, b in enumerate(("film", "book")))),
        rows(*({"text": a, "b": b, "label": 0} for a, b in (("good", "plot"), ("good", "book")))),
        {"text_pair": "b"},
        "1 of 2 rows have the text of one in data.train (row 2; in data.train row 2)",
    ),
    "token-classification": (
        rows(*({"text": t, "label": ["O", "B-X"]} for t in (["a", "film"], ["the", "film"]))),
        rows(*({"text": t, "label": ["O", "O"]} for t in (["the", "film"], ["a film", "x"]))),
        {},
        "1 of 2 rows have the text of one in data.train (row 1; in data.train row 2)",
    ),
    "multiple-choice": (
        rows(*({"text": "so", "c": [c, "bad"], "label": 0} for c in ("good", "fine"))),
        rows(*({"text": "so", "c": [c, "bad"], "label": 1} for c in ("great", "fine"))),
        {"choices": ["c"]},
        "1 of 2 rows have the text of one in data.train (row 2; in data.train row 2)",
    ),
    "sentence-embedding": (
        rows(*({"text": "good", "b": b} for b in ("film", "book"))),
        rows(*({"text": a, "b": b} for a, b in (("good", "plot"), ("good", "book")))),
        {"text_pair": "b"},
        "1 of 2 rows have the text of one in data.train (row 2; in data.train row 2)",
    ),
    "question-answering": (
        json.dumps([asked("good film", "what", "a"), asked("bad film", "what", "b")]),
        json.dumps([asked("bad film", "who", "c"), asked("bad film", "what", "d")]),
        {},
        "1 of 2 questions have the text of one in data.train (question d; in data.train question b",
    ),
    "masked-lm": (
        rows(*({"text": text} for text in ("good film", "\u200b", "bad film"))),
        rows(*({"text": text} for text in ("a book", "bad film"))),
        {},
        "1 of 2 documents have the text of one in data.train (document 2; in data.train document 2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_task_warns_from_the_cache_too(name, tiny_bert_dir, tmp_path, caplog):
    train, dev, settings, message = CASES[name]
    for part, content in (("train", train), ("dev", dev)):
        (tmp_path / f"{part}.jsonl").write_text(content)
    task = "sequence-classification" if name == "pairs" else name
    data = DataConfig(
        train=[str(tmp_path / "train.jsonl")],
        dev=[str(tmp_path / "dev.jsonl")],
        cache_dir=str(tmp_path / "cache"),
        max_length=32,
        **settings,
    )
    config = Config(
        model=ModelConfig(path=str(tiny_bert_dir), task=task),
        data=data,
        train=TrainConfig(),
        run=RunConfig(dir=str(tmp_path)),
        qa=QAConfig(max_question_length=6, doc_stride=4),
    )
    tokenizer = load_tokenizer(tiny_bert_dir)
    for _ in range(2):
        caplog.clear()
        TASKS[task].prepare(config, tokenizer)
        assert message in caplog.text
