"""`jaxllm predict`: order, numbers, shapes, bad lines, atomic output."""

import copy
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from answering import load_model, predict

from jaxllm import AutoModelForSequenceClassification, models
from jaxllm.data.fit import check_fit
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.metrics.classification import sigmoid, softmax
from jaxllm.prediction import batched, classification
from jaxllm.prediction.batched import EncodedLine, Predictor, Row
from jaxllm.prediction.batched import run as run_rows
from jaxllm.prediction.inputs import InputFormat, RowError, texts_of
from jaxllm.pretrained import hf
from jaxllm.trees import map_params

NAMES = ["bad", "fine", "très bien 好"]
SENTENCE = "the movie was not so good and the story is bad but we loved it all the time"


def texts(count):
    """Texts of many lengths, no two alike."""
    words = SENTENCE.split()
    return [" ".join(words[i % 7 :][: 1 + i * 5 % 17]) + f" {i}" for i in range(count)]


@pytest.fixture(scope="module")
def save_model(tiny_bert_config, tiny_tokenizer_dir, tmp_path_factory):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    usual = InputFormat(max_length=32)

    def save(form=usual, task="sequence-classification", **attributes):
        config = copy.deepcopy(tiny_bert_config)
        config.vocab_size = len(tokenizer)
        for name, value in attributes.items():
            setattr(config, name, value)
        directory = tmp_path_factory.mktemp("model") / "model"
        rng = np.random.default_rng(0)
        params = map_params(
            # Wide enough for logits that differ; drawn here, as compiling the initialisers is slow.
            lambda path, x: rng.normal(path.endswith("scale"), 0.3, x.shape).astype(np.float32),
            models.module_parts(config, task)[1],
        )
        hf.save_pretrained(directory, params, config, task, tokenizer=tokenizer)
        if form is not None:
            form.save(directory)
        return directory

    return save


def labelled(names, problem_type="single_label_classification"):
    id2label = dict(enumerate(names))
    label2id = {name: i for i, name in id2label.items()}
    return {"id2label": id2label, "label2id": label2id, "problem_type": problem_type}


@pytest.fixture(scope="module")
def model(save_model):
    return str(save_model(**labelled(NAMES)))


@pytest.fixture(scope="module")
def reference(model, tiny_tokenizer_dir):
    """Logits [C] of a text or a pair, encoded and cut by transformers, padded to 32 tokens."""
    config = hf.load_config(model)
    graphdef, abstract = models.module_parts(config, "sequence-classification")
    params, _ = hf.load_params(Path(model), config, abstract, init=None)
    apply = jax.jit(models.apply_fn(graphdef))
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def logits(*texts):
        options = {"padding": "max_length", "truncation": True, "max_length": 32}
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = tokenizer(*([text] for text in texts), return_tensors="np", **options)
        return np.asarray(apply(params, **{n: inputs[n].astype(np.int32) for n in names}).logits[0])

    return logits


def run(model, lines, tmp_path, batch_size=8):
    """The answers to `lines`, each bytes or a value to write as JSON."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (tmp_path / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in raw))
    counts = predict(model, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), batch_size)
    out = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(out) == counts["rows"] == len(lines)
    return [json.loads(line) for line in out], counts


def test_answers_are_in_order_and_equal_those_of_single_rows(model, reference, tmp_path):
    rows = texts(20)
    answers, counts = run(model, [{"text": text, "id": 1} for text in rows], tmp_path)
    assert counts == {"rows": 20, "errors": 0, "truncated": 0}
    for text, answer in zip(rows, answers, strict=True):
        share = softmax(reference(text))
        assert list(answer) == ["label", "score", "probabilities"]
        assert list(answer["probabilities"]) == NAMES
        np.testing.assert_allclose(list(answer["probabilities"].values()), share, atol=1e-5)
        assert answer["label"] == NAMES[int(share.argmax())]
        assert answer["score"] == answer["probabilities"][answer["label"]]
    assert len({answer["score"] for answer in answers}) > 15  # rows that differ, differ


@pytest.mark.parametrize("batch_size", [1, 24])
def test_batch_size_and_window_change_nothing(model, tmp_path, monkeypatch, batch_size):
    rows = texts(30)
    expected, _ = run(model, rows, tmp_path, batch_size=8)
    monkeypatch.setattr(batched, "WINDOW_BATCHES", 1)  # 8 devices: windows of 8 and 24 lines
    answers, _ = run(model, [*rows, b"not json"], tmp_path, batch_size=batch_size)
    assert answers[-1]["line"] == 31
    for one, other in zip(answers[:-1], expected, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_bad_line_is_answered_in_its_place(model, tmp_path, caplog):
    lines = [
        {"text": "a good movie"},
        b"{not json",
        b'{"text": "caf\xe9"}',
        {"sentence": "a good movie"},
        {"text": 7},
        {"text": None},
        {"text": "   "},
        ["a good movie"],
        b"",
        b'{"text": "\\ud83d"}',
        b"[" * 100_000,
        "a good movie",
    ]
    with caplog.at_level("INFO", logger="jaxllm"):
        answers, counts = run(model, lines, tmp_path)
    assert counts == {"rows": 12, "errors": 10, "truncated": 0}
    assert answers[0] == answers[-1]  # a bare string is a text
    assert "label" in answers[0]
    expected = {
        2: "not JSON: Expecting property name",
        3: "invalid UTF-8 at byte 14 of the line",
        4: "the column 'text' is missing, found 'sentence'",
        5: "the column 'text': expected a string, found a number",
        6: "the column 'text': expected a string, found null",
        7: "the column 'text': the text is empty",
        8: "expected an object with the column 'text', found a list",
        9: "the line is empty",
        10: "half a surrogate pair",
        11: "not JSON",
    }
    for line, message in expected.items():
        assert set(answers[line - 1]) == {"error", "line"}
        assert answers[line - 1]["line"] == line
        assert message in answers[line - 1]["error"]
    assert "12 rows: 10 answered with an error" in caplog.text
    assert "the first error: line 2: not JSON: Expecting" in caplog.text


def test_a_very_long_row_is_cut_and_says_so(model, reference, save_model, tmp_path):
    long = "good " * 20_000  # 100,000 characters
    answers, counts = run(model, [{"text": long}, {"text": "good"}], tmp_path)
    assert answers[0]["truncated"] is True
    assert "truncated" not in answers[1]
    assert counts["truncated"] == 1
    share = softmax(reference(long))
    np.testing.assert_allclose(list(answers[0]["probabilities"].values()), share, atol=1e-5)

    strict = str(save_model(InputFormat(max_length=32, truncation="error"), **labelled(NAMES)))
    answers, _ = run(strict, [{"text": "good " * 40}, {"text": "good"}], tmp_path)
    assert answers[0] == {"error": "the text has 42 tokens, expected at most 32", "line": 1}
    assert "label" in answers[1]


def test_truncation_on_the_left_keeps_the_end(save_model, reference, tmp_path):
    left = str(save_model(InputFormat(max_length=32, truncation="left"), **labelled(NAMES)))
    text = "bad " * 40 + "we loved it"
    answers, _ = run(left, [text], tmp_path)
    end = "bad " * 27 + "we loved it"  # 30 tokens, and the two special ones
    np.testing.assert_allclose(
        list(answers[0]["probabilities"].values()), softmax(reference(end)), atol=1e-5
    )


def test_column_names_are_those_of_training_and_pairs_are_read(save_model, reference, tmp_path):
    form = InputFormat(text="question", text_pair="sentence", max_length=32)
    pairs = str(save_model(form, **labelled(NAMES)))
    row = {"question": "who loved it", "sentence": "we loved it"}
    swapped = {"question": "we loved it", "sentence": "who loved it"}
    answers, _ = run(pairs, [row, swapped, {"question": "who"}, "who"], tmp_path)
    for answer, columns in zip(answers[:2], (row, swapped), strict=True):
        share = softmax(reference(*columns.values()))
        np.testing.assert_allclose(list(answer["probabilities"].values()), share, atol=1e-5)
    for answer in answers[2:]:
        assert "the column 'sentence' is missing" in answer["error"]


def test_a_model_of_one_token_type_takes_pairs(save_model, tiny_tokenizer_dir, tmp_path):
    """As KLUE's RoBERTa, whose tokenizer marks the second text with another type."""
    one = str(save_model(InputFormat(text_pair="second", max_length=32), type_vocab_size=1))
    text, second = "who loved it", "we loved it all"
    answers, _ = run(one, [{"text": text, "second": second}], tmp_path)
    ids = load_tokenizer(tiny_tokenizer_dir)(text, second)["input_ids"]
    logits = AutoModelForSequenceClassification.from_pretrained(one)(np.array([ids])).logits[0]
    share = softmax(np.asarray(logits))
    np.testing.assert_allclose(list(answers[0]["probabilities"].values()), share, atol=1e-5)


class Counter(Predictor):
    """The numbers of a line are its rows; the answer is their sum."""

    def parse(self, row):
        return row

    def encode(self, asked):
        rows = [[Row(np.array([n]), np.array([0])) for n in line] for line in asked]
        return [EncodedLine(own, len(own) > 2, None) for own in rows]

    def answer(self, asked, outputs):
        return {"sum": float(sum(outputs))}


def test_an_answer_of_numbers_that_are_not_finite_is_an_error():
    def forward(batch):
        ids = batch["input_ids"][:, 0].astype(np.float32)
        return np.where(ids == 3, np.nan, np.where(ids == 4, np.inf, ids))

    counter = Counter(InputFormat(max_length=16), (1, 2), forward)
    answers = counter.answers([[1], [2, 3], [5, 6, 7], [4]], first_line=10)
    assert answers[0] == {"sum": 1.0}
    assert answers[2] == {"sum": 18.0, "truncated": True}
    for i, line in ((1, 11), (3, 13)):
        assert "the model's numbers for this line are not finite" in answers[i]["error"]
        assert answers[i]["line"] == line


def test_a_format_that_the_model_has_no_place_for_is_refused(save_model, tmp_path):
    long = str(save_model(InputFormat(max_length=65), **labelled(NAMES)))
    with pytest.raises(InputError, match=r"jaxllm\.json: max_length: found 65, .* 64 positions"):
        run(long, texts(1), tmp_path)

    def tokenizer(*texts, return_token_type_ids):
        return {"token_type_ids": [0, 2][: len(texts)]}

    tokenizer.get_vocab = lambda: {"a": 98}
    config = SimpleNamespace(
        model_type="modernbert", vocab_size=99, max_position_embeddings=64, type_vocab_size=2
    )
    check_fit(config, tokenizer, 64, pair=False)
    with pytest.raises(InputError, match="tells 3 types of tokens apart, but the model 2"):
        check_fit(config, tokenizer, 64, pair=True)


def test_a_model_without_description_takes_text_and_text_pair(save_model, tmp_path):
    plain = str(save_model(None, **labelled(["no", "yes"])))
    row = {"text": "who loved it", "text_pair": "we loved it"}
    answers, _ = run(plain, [row, {"text": "who loved it"}, "who loved it"], tmp_path)
    assert answers[1] == answers[2] != answers[0]
    assert "label" in answers[0]


@pytest.mark.parametrize(
    ("head", "row", "keys"),
    [
        ("token-classification", {"text": "we loved it"}, {"entities"}),
        (
            "question-answering",
            {"question": "who loved it?", "context": "we loved it"},
            {"answer", "score", "start", "end", "null_odds"},
        ),
        (
            "multiple-choice",
            {"text": "we loved", "choices": ["it", "the story"]},
            {"label", "choice", "score", "probabilities"},
        ),
    ],
)
def test_a_model_without_description_is_what_its_class_is_for(
    save_model, tmp_path, head, row, keys
):
    names = labelled(["O", "B-PER"] if head == "token-classification" else ["0", "1"])
    plain = save_model(None, head, max_position_embeddings=256, **names)
    answers, _ = run(str(plain), [row], tmp_path)
    assert set(answers[0]) == keys


def test_several_labels_and_regression(save_model, tmp_path):
    multi = save_model(**labelled(NAMES, "multi_label_classification"))
    answers, _ = run(str(multi), texts(10), tmp_path)
    chosen = set()
    for answer in answers:
        assert list(answer) == ["labels", "probabilities"]
        assert answer["labels"] == [n for n in NAMES if answer["probabilities"][n] > 0.5]
        chosen |= {tuple(answer["labels"])}
    assert len(chosen) > 1, chosen
    total = [sum(answer["probabilities"].values()) for answer in answers]
    assert not np.allclose(total, 1)  # sigmoids, not a softmax

    number = save_model(num_labels=1, problem_type="regression")
    answers, _ = run(str(number), texts(4), tmp_path)
    assert all(list(answer) == ["value"] for answer in answers)
    assert len({answer["value"] for answer in answers}) == 4

    two = save_model(num_labels=2, problem_type="regression")
    with pytest.raises(InputError, match="regression with 2 values, expected one"):
        run(str(two), texts(1), tmp_path)


def rows(count):
    return [Row(np.array([n]), np.array([0])) for n in range(count)]


def test_few_shapes_are_compiled(model, tmp_path):
    predictor = load_model(model, 8).predictor
    shapes = set()

    def forward(batch):
        shapes.add(batch["input_ids"].shape)
        return np.zeros((len(batch["input_ids"]), 3), np.float32)

    texts = ["good " * n for n in range(1, 60)]
    answers = replace(predictor, forward=forward).answers(texts, 1)
    assert shapes == {(8, 16), (8, 32)}
    assert [("truncated" in a) for a in answers] == [n > 30 for n in range(1, 60)]
    # Few rows are not padded to a batch: someone waits for them.
    shapes.clear()
    assert [len(run_rows(rows(n), forward, (2, 8), max_length=32)) for n in (1, 2, 3)] == [1, 2, 3]
    assert shapes == {(2, 16), (8, 16)}


def test_standard_input_and_output(model, tmp_path, monkeypatch, capsys):
    source = b'\xef\xbb\xbf{"text": "a good movie"}\r\n"bad"'  # BOM, CRLF, no last newline
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(source)))
    assert predict(model, "-", "-")["rows"] == 2
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["label" in answer for answer in answers] == [True, True]
    assert NAMES[2] in answers[0]["probabilities"]


def test_a_line_is_answered_before_the_next_is_written(model, tmp_path):
    """As programs do that talk over pipes; order and numbering go on over the pauses."""
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    with ThreadPoolExecutor() as pool:
        counts = pool.submit(predict, model, str(tmp_path / "in"), str(tmp_path / "out"))
        with open(tmp_path / "in", "wb", buffering=0) as source, open(tmp_path / "out") as sink:
            source.write(b'"good"\n')
            assert "label" in json.loads(sink.readline())
            source.write(b'{"text": "bad"}\nno json\n')
            assert "label" in json.loads(sink.readline())
            assert json.loads(sink.readline())["line"] == 3
            source.write(b'"no newline"')
            source.close()
            assert "label" in json.loads(sink.readline())
            assert sink.readline() == ""
        assert counts.result(timeout=300) == {"rows": 4, "errors": 1, "truncated": 0}


def test_a_stream_without_unicode_gets_escapes(model, monkeypatch):
    source = SimpleNamespace(buffer=io.BytesIO(b'"good"'))
    monkeypatch.setattr(sys, "stdin", source)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    predict(model, "-", "-")
    assert list(json.loads(raw.getvalue())["probabilities"]) == NAMES


def test_pipes_are_written_and_links_kept(model, tmp_path):
    (tmp_path / "in.jsonl").write_text('"good"\n')
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        predict(model, str(tmp_path / "in.jsonl"), str(tmp_path / "pipe"))
        assert "label" in json.loads(os.read(end, 10_000))
    finally:
        os.close(end)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "real.jsonl")
    predict(model, str(tmp_path / "in.jsonl"), str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert "label" in json.loads((tmp_path / "real.jsonl").read_text(encoding="utf-8"))


def test_an_empty_input_gives_an_empty_output(model, tmp_path):
    answers, counts = run(model, [], tmp_path)
    assert answers == []
    assert counts == {"rows": 0, "errors": 0, "truncated": 0}
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_failure_leaves_the_old_output_and_nothing_else(model, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("old\n")

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Predictor, "answers", fail)
    with pytest.raises(InputError, match=r"out\.jsonl: No space left on device"):
        run(model, texts(3), tmp_path)
    assert (tmp_path / "out.jsonl").read_text() == "old\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_wrong_files_and_models_are_refused(model, save_model, tmp_path, monkeypatch):
    source = tmp_path / "in.jsonl"
    source.write_text('"good"\n')
    output = str(tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"--input .*absent: no such file"):
        predict(model, str(tmp_path / "absent"), output)
    with pytest.raises(InputError, match=r"--input .*: a directory"):
        predict(model, str(tmp_path), output)
    with pytest.raises(InputError, match=r"--output .*: there is no directory .*nowhere"):
        predict(model, str(source), str(tmp_path / "nowhere" / "out"))
    with pytest.raises(InputError, match=r"--output .*: a directory"):
        predict(model, str(source), str(tmp_path))
    with pytest.raises(InputError, match=r"--output .*: this is the input"):
        predict(model, str(source), str(source))
    long = str(tmp_path / ("long" * 1000))
    with pytest.raises(InputError, match=r"--input .*longlong: no such file"):
        predict(model, long, output)
    with pytest.raises(InputError, match=r"longlong.*File name too long"):
        predict(model, str(source), long)
    with pytest.raises(InputError, match=r"longlong does not exist"):
        predict(long, str(source), output)
    for stream, names in {"stdin": ("-", output), "stdout": (str(source), "-")}.items():
        monkeypatch.setattr(sys, stream, None)
        with pytest.raises(InputError, match=r"put -: standard (input|output) is closed"):
            predict(model, *names)
        monkeypatch.undo()
    with pytest.raises(InputError, match="--batch_size: found 0"):
        predict(model, str(source), output, 0)
    with pytest.raises(InputError, match=r"no_model"):
        predict(str(tmp_path / "no_model"), str(source), output)
    with pytest.raises(InputError, match="no sequence-classification head, classifier/"):
        predict(str(save_model(task="base")), str(source), output)
    assert not Path(output).exists()


def test_a_tokenizer_larger_than_the_model_is_refused(save_model, tmp_path):
    small = save_model(vocab_size=50, **labelled(NAMES))
    with pytest.raises(InputError, match="tokens, but the model 50 "):
        run(str(small), texts(1), tmp_path)


def test_input_format_round_trip(tmp_path):
    form = InputFormat(text="文本", text_pair="second", max_length=64, truncation="left")
    form.save(tmp_path)
    assert InputFormat.load(tmp_path, max_length=8) == form
    (tmp_path / "jaxllm.json").unlink()
    assert InputFormat.load(tmp_path, max_length=8) == InputFormat(
        text_pair="text_pair", pair_optional=True, max_length=8
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x", "colour": 3}', r"not a description .*the key colour, expected one of task"),
        ('{"text": 3}', r"text: found 3, expected str"),
        ('{"max_length": true}', r"max_length: found True, expected int"),
        ('{"max_length": "64"}', r"max_length: found '64', expected int"),
        ('{"max_length": 0}', r"max_length: found 0, expected at least 1"),
        ('{"truncation": "middle"}', r"truncation: found 'middle', expected \['right', 'left'"),
        ('{"task": "chess"}', r"task: found 'chess', expected \['sequence-classification'"),
        ('{"task": ["masked-lm"]}', r"task: found \['masked-lm'\], expected"),
        ('{"text_pair": ["a"]}', r"text_pair: found \['a'\], expected str \| None"),
        ('{"choices": []}', r"choices: found \[\], expected list\[str\] \| None"),
        ('{"choices": ["a", 1]}', r"choices: found \['a', 1\]"),
        ('{"qa": {"n_best": "3"}}', r"qa\.n_best: found '3', expected int"),
        ('{"qa": {"n_best": 0}}', r"qa\.n_best: found 0, expected at least 1"),
        ('{"qa": {"nullable": "no"}}', r"qa\.nullable: found 'no', expected bool"),
        ('{"qa": {"best": 1}}', r"the key qa\.best, expected one of max_question_length"),
        ('{"task": "question-answering"}', r"expected the column of the context"),
        ("[]", r"holds a JSON list"),
        ("{", r"is damaged \(JSONDecodeError"),
        ("[" * 100_000, r"is damaged \(RecursionError"),
    ],
)
def test_a_format_that_cannot_be_is_refused(content, message, tmp_path):
    (tmp_path / "jaxllm.json").write_text(content)
    with pytest.raises(InputError, match=rf"jaxllm\.json: .*{message}"):
        InputFormat.load(tmp_path, max_length=8)


def test_rows_are_read_by_the_format():
    pair = InputFormat(text="a", text_pair="b")
    assert texts_of({"b": "two", "a": "one"}, pair) == ("one", "two")
    assert texts_of(["one", "two"], pair) == texts_of(("one", "two"), pair) == ("one", "two")
    assert texts_of({"text": "one", "text_pair": 3}, InputFormat()) == ("one", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "one", "b": {}}, "the column 'b': expected a string, found an object"),
        ({"a": "one", "b": ("two",)}, "the column 'b': expected a string, found a list"),
        ({"a": b"one", "b": "two"}, "the column 'a': expected a string, found bytes"),
        ({"a": float("nan"), "b": "two"}, "the column 'a': expected a string, found a number"),
        (("one", None), "the column 'b': expected a string, found null"),
        ({}, "the column 'a' is missing, found none"),
        ({1: "one", None: "two"}, "the column 'a' is missing, found '1', 'None'"),
        (["one"], "expected the two texts 'a' and 'b', found a list of 1"),
        (("one", "two", "three"), "found a list of 3"),
        (7, "expected an object with the column 'a', found a number"),
        (True, "found true or false"),
        (None, "found null"),
        (np.array(["one", "two"]), "found ndarray"),
    ],
    ids=str,
)
def test_a_row_of_another_kind_is_an_error(row, message):
    with pytest.raises(RowError, match=message):
        texts_of(row, InputFormat(text="a", text_pair="b"))


def test_answers_are_rounded_to_six_digits():
    answer = classification.answer("single_label_classification", ["a", "b"], np.array([0.0, 1.0]))
    assert answer["score"] == 0.731059
    answer = classification.answer("multi_label_classification", ["a", "b"], np.array([0.0, -30.0]))
    assert answer["labels"] == []  # exactly one half is not above it
    assert answer["probabilities"]["b"] == float(f"{sigmoid(-30.0):.6g}") > 0
