"""SQuAD's JSON to windows: as the tokenizer itself cuts them, with the answer's tokens."""

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest

from jaxllm.config.fields import DataConfig, QAConfig
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
    with pytest.raises(InputError, match=r"row 1: found nothing as 'question'.*rows of id,"):
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
    "found float '3.5' as 'id', expected str": [row("what", name=3.5)],
    "found bool 'True' as 'id', expected str": [row("what", name=True)],
    "found str 'False' as 'is_impossible', expected true or false": [
        row("what", ("plot", 34), is_impossible="False")
    ],
    "found int '0' as 'is_impossible', expected true or false": [row("what", is_impossible=0)],
    "found dict as 'question', expected str": [row({"deep": "\n"})],
    "found nothing as 'text', expected list": [
        {"id": "a", "question": "b", "answers": {"answer_start": [1]}}
    ],
    "found 1 texts and 2 of answer_start": [
        {"id": "a", "question": "b", "answers": {"text": ["x"], "answer_start": [1, 2]}}
    ],
    "answer in another Unicode form than its context": [row("what", ("a\u0301", 0))],
    "found str '1' as 'answer_start', expected int": [row("what", ("plot", "1"))],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, wordpiece, tmp_path):
    context = "\u00e1 " + CONTEXT if "Unicode form" in message else CONTEXT
    with pytest.raises(InputError) as error:
        load(write(tmp_path / "a.json", MISTAKES[message], context), wordpiece)
    assert message in str(error.value)
    assert str(tmp_path / "a.json") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON: line 1: Expecting value"),
        (b'{"data": [{"paragraphs": [3]}]}', "not JSON: line 1: expected an object"),
        (b'{"data" []}', "not JSON: line 1: expected : behind a key"),
        (b'{"data": "\xff"}', "line 1: byte 0xff at offset 10 is not UTF-8"),
        (b"[]", "data.train: no question is left"),
        (b"{}", "found nothing as 'context', expected str"),
        (b'{"data": []}', "data.train: no question is left"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b'{"data": [{"paragraphs": ' + b"[" * 100_000, "not JSON: maximum recursion depth"),
        (b'{"context": ' + b"[" * 100_000, "not JSON: line 1: nested too deeply"),
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


def variants():
    """The same two questions in every form; beside the name of the file and its ids."""
    rows = [row("who liked it", ("She", 20), name=7), row("what did he like", name=8)]
    own = [{k: v for k, v in each.items() if k != "id"} for each in rows]
    paragraph = {"context": CONTEXT, "qas": rows}
    flat = [
        {
            "id": f"f{i}",
            "context": CONTEXT,
            "question": each["question"],
            "answers": {k: [a[k] for a in each["answers"]] for k in ("text", "answer_start")},
        }
        for i, each in enumerate(rows)
    ]
    listed = [dict(each, context=CONTEXT) for each in rows]
    lines = "".join(json.dumps(each) + "\n" for each in flat)
    made = ["question-1", "question-2"]
    return {
        "int ids": ({"data": [{"paragraphs": [paragraph]}]}, ["7", "8"]),
        "no ids": ({"data": [{"paragraphs": [{"context": CONTEXT, "qas": own}]}]}, made),
        "empty ids": ([{"context": CONTEXT, "qas": [r | {"id": ""} for r in own]}], made),
        "paragraphs alone": ([paragraph], ["7", "8"]),
        "articles alone": ([{"title": "t", "paragraphs": [paragraph]}], ["7", "8"]),
        "data of paragraphs": ({"version": 1.1, "data": [paragraph], "x": [2]}, ["7", "8"]),
        "flat lines": (lines, ["f0", "f1"]),
        "flat list": (flat, ["f0", "f1"]),
        "flat data": ({"data": flat}, ["f0", "f1"]),
        "flat rows with lists of answers": (listed, ["7", "8"]),
    }


@pytest.mark.parametrize("form", variants())
def test_squad_in_the_forms_that_go_about(form, wordpiece, tmp_path):
    expected, _ = load(
        write(tmp_path / "a.json", variants()["int ids"][0]["data"][0]["paragraphs"][0]["qas"]),
        wordpiece,
    )
    content, ids = variants()[form]
    path = tmp_path / "b.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    windows, asked = load(str(path), wordpiece)
    assert [question.id for question in asked.questions] == ids
    assert asked.contexts == [CONTEXT]
    assert [question.answers for question in asked.questions] == [(("She", 20),), ()]
    assert windows.tokens.tolist() == expected.tokens.tolist()
    assert windows.labels.tolist() == expected.labels.tolist()


def test_odd_truth_values_of_is_impossible_are_told(wordpiece, tmp_path, caplog):
    rows = [
        row("who", ("plot", 5), name="both", is_impossible=True),
        row("what", ("plot", 34), name="right", is_impossible=False),
        row("why", name="neither", is_impossible=False),
        row("when", ("", 0), name="not given", is_impossible=True),
        {"id": "no answers", "question": "how", "is_impossible": True},
        row("where", ("plot", 34), name="null", is_impossible=None),
    ]
    path = write(tmp_path / "a.json", rows)
    for _ in range(2):  # read, and from the cache
        caplog.clear()
        _, asked = load(path, wordpiece, cache_dir=str(tmp_path / "cache"))
        answered = [question.id for question in asked.questions if question.answers]
        assert answered == ["right", "null"]
        both = f"1 × is_impossible together with answers, which are left out ({path}: 'both')"
        assert both in caplog.text
        assert f"taken as a question without an answer ({path}: 'neither')" in caplog.text
        assert "not given" not in caplog.text


def test_a_context_of_too_many_bytes_is_told(wordpiece, tmp_path):
    path = write(tmp_path / "a.json", [row("what")])
    with pytest.raises(InputError, match=r"not JSON: line 1: longer than data\.max_row_bytes=40"):
        load(path, wordpiece, max_row_bytes=40)
    import datasets

    rows = [{"id": "a", "context": CONTEXT, "question": "b", "answers": {"text": ["x"]}}]
    rows[0]["answers"]["answer_start"] = [0]
    part = datasets.Dataset.from_list(rows)
    part.to_parquet(str(tmp_path / "set" / "train.parquet"))
    data = DataConfig(dataset=str(tmp_path / "set"), max_length=LENGTH, max_row_bytes=40)
    with pytest.raises(InputError, match=r"1 × longer than data\.max_row_bytes=40 "):
        load_windows(data, QA, "train", wordpiece)
