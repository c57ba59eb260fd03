"""SQuAD's JSON to windows: as the tokenizer itself cuts them, with the answer's tokens."""

import gzip
import json

import numpy as np
import pytest

from jaxllm.config_fields import DataConfig, QAConfig
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.windows import load_windows
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
