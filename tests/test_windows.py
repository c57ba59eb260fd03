"""SQuAD's JSON to windows: as the tokenizer itself cuts them, with the answer's tokens."""

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest

from jaxllm.config_fields import DataConfig, QAConfig
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.data.window_cache import load_windows
from jaxllm.data.windows import WindowEncoder
from jaxllm.errors import InputError

CONTEXT = "The movie was long. She liked the plot of it, but he never liked the acting at all!"
QA = QAConfig(max_question_length=6, doc_stride=4)
LENGTH = 20


def row(question, *answers, name="q1", **more):
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": question, "answers": found, **more}


def write(path, rows, context=CONTEXT):
    content = {"data": [{"paragraphs": [{"context": context, "qas": rows}]}]}
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        json.dump(content, file)
    return str(path)


@pytest.fixture(scope="module")
def wordpiece(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def byte_level():
    """A RoBERTa tokenizer of single bytes: <s> question </s></s> context </s>, offsets trimmed."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate([*specials, *sorted(ByteLevel.alphabet())])}
    return RobertaTokenizer(vocab=vocabulary, merges=[])


def load(path, tokenizer, split="train", qa=QA, length=LENGTH, **data):
    config = DataConfig(train=[path], dev=[path], max_length=length, **data)
    return load_windows(config, qa, split, tokenizer)


def test_windows_are_those_of_the_tokenizer(wordpiece, tmp_path):
    question = "who liked the plot"
    windows, _ = load(write(tmp_path / "a.json.gz", [row(question, ("the plot", 30))]), wordpiece)
    expected = wordpiece(
        question,
        CONTEXT,
        max_length=LENGTH,
        truncation="only_second",
        stride=4,
        return_overflowing_tokens=True,
    )
    assert len(windows) == len(expected["input_ids"]) == 3
    for i, (begin, end) in enumerate(zip(windows.offsets, windows.offsets[1:], strict=False)):
        assert windows.tokens[begin:end].tolist() == expected["input_ids"][i]
        assert windows.type_ids[begin:end].tolist() == expected["token_type_ids"][i]


def answer_text(windows, i, label):
    source = windows.source[i] + np.asarray(label) - windows.begin[i]
    return CONTEXT[windows.spans[source[0], 0] : windows.spans[source[1], 1]]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_an_answer_has_no_space_that_belongs_to_its_token(kind, tmp_path):
    (tmp_path / "a.txt").write_text(f"{CONTEXT}\n" * 30)
    train_tokenizer([str(tmp_path / "a.txt")], str(tmp_path / "t"), kind=kind, vocab_size=300)
    tokenizer = load_tokenizer(tmp_path / "t")
    asked = [row("who", ("the plot", CONTEXT.index("the plot")))]
    windows, _ = load(write(tmp_path / "a.json", asked), tokenizer, length=90)
    (label,) = windows.labels
    assert answer_text(windows, 0, label) == "the plot"
    texts = [CONTEXT[begin:end] for begin, end in windows.spans]
    assert texts == [text.strip() or " " for text in texts]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_gives_the_windows_of_its_file(wordpiece, tmp_path, streaming):
    import datasets

    other = "He never liked it."
    rows = [
        row("who liked the plot", ("She", 20), ("the movie", 0), name="a"),
        row("what was good", name="b"),
        row("what did he like", ("it", 15), name="c"),
    ]
    contexts = [CONTEXT, CONTEXT, other]
    paragraphs = [{"context": CONTEXT, "qas": rows[:2]}, {"context": other, "qas": rows[2:]}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    table = [
        {
            "id": asked["id"],
            "title": "no matter",
            "context": context,
            "question": asked["question"],
            "answers": {
                key: [answer[key] for answer in asked["answers"]]
                for key in ("text", "answer_start")
            },
        }
        for asked, context in zip(rows, contexts, strict=True)
    ]
    table[1]["answers"] = {"text": [], "answer_start": []}
    answers = {"text": [datasets.Value("string")], "answer_start": [datasets.Value("int32")]}
    texts = ("id", "title", "context", "question")
    features = {name: datasets.Value("string") for name in texts} | {"answers": answers}
    part = datasets.Dataset.from_list(table, features=datasets.Features(features))
    part.to_parquet(str(tmp_path / "set" / "train.parquet"))
    expected, asked = load(str(file), wordpiece)
    data = DataConfig(dataset=str(tmp_path / "set"), streaming=streaming, max_length=LENGTH)
    windows, found = load_windows(data, QA, "train", wordpiece)
    assert windows.tokens.tolist() == expected.tokens.tolist()
    assert windows.labels.tolist() == expected.labels.tolist()
    assert (windows.labels[:, 0] > 0).sum() == 2
    assert found.contexts == asked.contexts == [CONTEXT, other]
    assert [q.answers for q in found.questions] == [q.answers for q in asked.questions]
    cut = part.remove_columns("question")
    cut.to_parquet(str(tmp_path / "cut" / "train.parquet"))
    data = DataConfig(dataset=str(tmp_path / "cut"), streaming=streaming, max_length=LENGTH)
    with pytest.raises(InputError, match=r"row 1: found nothing as 'question'.*columns id,"):
        load_windows(data, QA, "train", wordpiece)


def test_windows_are_kept_by_content(wordpiece, tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", [row("who liked it", ("She", 20)), row("what", name="b")])
    used = {"qa": QA, "cache_dir": str(tmp_path / "cache")}
    first, asked = load(path, wordpiece, **used)
    with monkeypatch.context() as patch:
        patch.setattr(WindowEncoder, "windows", None)  # nothing is cut anew
        again, same = load(path, wordpiece, **used)
    assert same == asked
    assert same.questions[0].answers == (("She", 20),)
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(first, field.name))
    for changed in (
        {"qa": dataclasses.replace(QA, doc_stride=3)},
        {"qa": dataclasses.replace(QA, max_question_length=2)},
        {"length": LENGTH - 1},
        {"max_train_examples": 1},
        {"on_bad_row": "drop"},
        {"split": "dev"},
    ):
        load(path, wordpiece, **(used | changed))
    write(tmp_path / "a.json", [row("who liked it", ("She", 20))])
    assert len(load(path, wordpiece, **used)[1].questions) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 8


def test_the_label_is_the_answer_where_the_window_holds_it(wordpiece, tmp_path):
    start = CONTEXT.index("plot of it")
    windows, _ = load(
        write(tmp_path / "a.json", [row("what", ("plot of it", start))]),
        wordpiece,
        qa=QAConfig(max_question_length=6, doc_stride=2),
        length=12,
    )
    texts = [answer_text(windows, i, label) for i, label in enumerate(windows.labels) if any(label)]
    assert texts == ["plot of it"]
    outside = [label.tolist() for label in windows.labels if not all(label)]
    assert outside == [[0, 0]] * (len(windows) - 1)
    assert len(windows) > 2


def test_every_word_is_labelled_in_the_windows_that_hold_it_and_in_no_other(wordpiece, tmp_path):
    words = [(match.group(), match.start()) for match in re.finditer(r"[a-zA-Z]+", CONTEXT)]
    rows = [row("what", word, name=str(i)) for i, word in enumerate(words)]
    path = write(tmp_path / "a.json", rows)
    qa = QAConfig(max_question_length=6, doc_stride=2)
    windows, _ = load(path, wordpiece, qa=qa, length=12)
    held = 0
    for i, label in enumerate(windows.labels):
        word, start = words[windows.question[i]]
        count = windows.end[i] - windows.begin[i]
        spans = windows.spans[windows.source[i] : windows.source[i] + count]
        inside = spans[0, 0] <= start and start + len(word) <= spans[-1, 1]
        held += inside
        assert (answer_text(windows, i, label) == word) if inside else not label.any()
    assert len(words) < held < len(windows)


def test_byte_level_offsets_hold_characters_of_several_tokens(byte_level, tmp_path):
    context = "x 很差 y"
    windows, _ = load(
        write(tmp_path / "a.json", [row("w", ("很差", 2))], context),
        byte_level,
        qa=QAConfig(max_question_length=6, doc_stride=2),
        length=32,
    )
    (label,) = windows.labels
    # <s>w</s></s>x, and the space before 很 is a token of its own.
    assert windows.tokens[:4].tolist() == [0, windows.tokens[1], 2, 2]
    source = windows.source[0] + label - windows.begin[0]
    begin, end = windows.spans[source[0], 0], windows.spans[source[1], 1]
    assert context[begin:end] == "很差"
    assert label[1] - label[0] + 1 == 6  # three bytes a character


def test_unanswerable_questions_point_to_the_first_token(wordpiece, tmp_path):
    rows = [
        row("what", name="a", is_impossible=True),
        row("who", ("plot", 5), name="b", is_impossible=True),
    ]
    windows, questions = load(write(tmp_path / "a.json", rows), wordpiece)
    assert not windows.labels.any()
    assert questions.unanswerable
    assert questions.questions[1].answers == ()


def test_a_question_is_cut_and_counted(wordpiece, tmp_path):
    path = write(tmp_path / "a.json", [row("who liked the plot of the movie", ("plot", 34))])
    windows, _ = load(path, wordpiece)
    assert windows.report.truncated == 1
    assert windows.begin[0] == 1 + QA.max_question_length + 1


def test_an_answer_beside_its_offset_is_refused_or_dropped(wordpiece, tmp_path):
    start = CONTEXT.index("plot")
    rows = [
        row("what", ("plot", start + 1), name="off"),
        row("what", ("plots", -1), ("plot", start), name="second"),
        row("what", ("plots", -1), name="never"),
    ]
    path = write(tmp_path / "a.json", rows)
    with pytest.raises(InputError) as error:
        load(path, wordpiece)
    assert "2 of 3 questions cannot be used: 2 × answer that does not stand" in str(error.value)
    assert f"({path}: 'off', 'never')" in str(error.value)
    assert "data.on_bad_row: drop" in str(error.value)
    windows, questions = load(path, wordpiece, on_bad_row="drop")
    assert [question.id for question in questions.questions] == ["second"]
    assert windows.report.dropped == {"answer that does not stand at its answer_start": 2}
    assert windows.report.read == 3
    assert set(windows.rows) == {2}
    # Predictions are compared with texts, so the dev part keeps them; they have no label.
    windows, questions = load(path, wordpiece, split="dev")
    assert [question.id for question in questions.questions] == ["off", "second", "never"]
    unknown = windows.question[windows.labels[:, 0] < 0]
    assert set(unknown) == {0, 2}


MISTAKES = {
    "missing question": [row(" ", ("plot", 34))],
    "question that is not valid Unicode": [row("\ud83d")],
    "id that another question has": [row("what"), row("who")],
    "question without a token": [row("\u200b")],
    "found nothing as 'answers', expected list": [{"id": "a", "question": "b"}],
    "found int '3' as 'id', expected str": [row("what", name=3)],
    "found str '1' as 'answer_start', expected int": [row("what", ("plot", "1"))],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, wordpiece, tmp_path):
    with pytest.raises(InputError) as error:
        load(write(tmp_path / "a.json", MISTAKES[message]), wordpiece)
    assert message in str(error.value)
    assert str(tmp_path / "a.json") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON in UTF-8"),
        (b'{"data": "\xff"}', "not JSON in UTF-8"),
        (b"[]", "found nothing as 'data', expected list"),
        (b'{"data": []}', "data.train: no question is left"),
        (None, "cannot be read: [Errno 2]"),
    ],
)
def test_files_of_another_kind(content, message, wordpiece, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load(str(path), wordpiece)
    assert message in str(error.value)


def test_rows_too_short_for_a_context(wordpiece, tmp_path):
    path = write(tmp_path / "a.json", [row("what")])
    with pytest.raises(InputError, match=r"data\.max_length=13 leaves no room .* at least 14"):
        load(path, wordpiece, length=13)


def test_the_first_so_many_questions(wordpiece, tmp_path):
    rows = [row("what", name=str(i)) for i in range(5)]
    path = write(tmp_path / "a.json", rows)
    _, questions = load(path, wordpiece, max_train_examples=2)
    assert [question.id for question in questions.questions] == ["0", "1"]
