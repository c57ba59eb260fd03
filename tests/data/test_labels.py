"""What a cell of labels means: every rule of `jaxllm.data.labels`, and what is refused."""

import json
import math
import re

import numpy as np
import pytest

from jaxllm.config.checks import check
from jaxllm.config.fields import Config, ModelConfig
from jaxllm.config.reading import DataConfig
from jaxllm.data.corpus import load_examples, load_tokenizer
from jaxllm.data.labels import Labels
from jaxllm.errors import InputError

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
MISSING = "missing label"


def read(problem, cells, names=None, **options):
    """(names, labels by name, faults) of a column."""
    labels = Labels(problem, names, **options)
    faults = []
    for cell in cells:
        label, fault = labels.read(cell)
        faults.append(fault)
        if fault is None:
            labels.append(label)
    array, names = labels.finish()
    if array.ndim == 2:
        return names, [[names[c] for c in np.flatnonzero(row)] for row in array], faults
    return names, [names[code] for code in array], faults


def sets(cells, names=None, **options):
    """The sets of labels of cells that are all good."""
    _, labels, faults = read(MULTI, cells, names, **options)
    assert faults == [None] * len(cells)
    return labels


LEARNED = {  # a cell -> its labels where names are learned from the column
    "names with | between": ("sad | funny", ["funny", "sad"]),
    "| and nothing": ("|", []),
    "an empty cell": ("", []),
    "spaces": ("  ", []),
    "one name": ("very sad", ["very sad"]),
    "a list in JSON lines": (["sad", "funny"], ["funny", "sad"]),
    "an empty list": ([], []),
    "a JSON list in text": ('["sad", "not \\"funny\\""]', ['not "funny"', "sad"]),
    "a list as pandas writes it": ("['anger', 'sadness']", ["anger", "sadness"]),
    "an empty list as pandas writes it": ("[]", []),
    "names with commas in a list": ("['food, drink', 'art']", ["art", "food, drink"]),
    "names with commas, with | between": ("food, drink|art", ["art", "food, drink"]),
    "a tuple": ("('anger', 'joy')", ["anger", "joy"]),
    "a set": ("{'joy'}", ["joy"]),
    "a name in brackets": ("(other)", ["(other)"]),
    "names in brackets with | between": ("[a]|[b]", ["[a]", "[b]"]),
    "a number": (7, ["7"]),
    "numbers in a list": ([8, 20], ["20", "8"]),
    "numbers in a list in text": ("[8, 20]", ["20", "8"]),
    "numbers with | between": ("8|20", ["20", "8"]),
    "a name with figures": ("2 stars", ["2 stars"]),
}


@pytest.mark.parametrize("case", LEARNED)
def test_cells_of_several_labels_whose_names_are_learned(case):
    cell, expected = LEARNED[case]
    first, second = sets([cell, "other"])
    assert (sorted(first), second) == (expected, ["other"])


NAMES = ["neutral", "joy", "sadness", "food, drink"]
TOLD = {  # a cell -> its labels where data.labels has NAMES
    "ids with a comma": ("1,2", ["joy", "sadness"]),
    "ids with a semicolon": ("1; 2", ["joy", "sadness"]),
    "ids with a space": ("1 2", ["joy", "sadness"]),
    "ids with |": ("1|2", ["joy", "sadness"]),
    "ids in a list": ([3, 0], ["neutral", "food, drink"]),
    "ids as pandas writes them beside nothing": ("[1.0, 2.0]", ["joy", "sadness"]),
    "one id": ("2", ["sadness"]),
    "one number": (2.0, ["sadness"]),
    "a vector": ("0,1,0,1", ["joy", "food, drink"]),
    "a vector in a list": ([0, 1, 1, 0], ["joy", "sadness"]),
    "a vector in a list in text": ("[1.0, 0.0, 0.0, 0.0]", ["neutral"]),
    "a vector as numpy prints it": ("[0 1 0 0]", ["joy"]),
    "a vector of floats as numpy prints it": ("[0. 1. 0. 0.]", ["joy"]),
    "a vector of nothing": ("0 0 0 0", []),
    "a vector of truth values": ("[False, True, False, True]", ["joy", "food, drink"]),
    "a name with a comma": ("food, drink", ["food, drink"]),
    "names but for case": ("Joy|SADNESS", ["joy", "sadness"]),
}


@pytest.mark.parametrize("case", TOLD)
def test_cells_of_several_labels_whose_names_are_told(case):
    cell, expected = TOLD[case]
    assert sets([cell, "joy"], NAMES, told=True) == [expected, ["joy"]]


def test_names_with_commas_between_are_read_where_no_name_has_one():
    assert sets(["joy, sadness", "Joy;sadness"], ["joy", "sadness"]) == [["joy", "sadness"]] * 2


REFUSED = {  # case -> cell, names, told, what is said
    "ids and nobody knows of what": ("8,20", None, False, r"several numbers .*data\.labels"),
    "a vector and nobody knows of what": (
        [0, 1, 1],
        None,
        False,
        r"several numbers .*data\.labels",
    ),
    "a vector in text": ("1 0 0 1", None, False, "several numbers"),
    "truth values": ([True, False], None, False, "several numbers"),
    "names with a comma": ("joy,sadness", None, False, r"put \| between names, or list all names"),
    "names with a semicolon": ("joy;sadness", None, False, "commas or semicolons"),
    "a comma that is in a name, too": ("joy, neutral", NAMES, True, "commas or semicolons"),
    "an unknown name behind a comma": ("a, c", ["a", "b"], True, "commas or semicolons"),
    "a vector that is too short": ("1,0,0", NAMES, True, "not one place for each label"),
    "a vector that is too long": ([0, 1, 0, 0, 1], NAMES, True, "not one place for each label"),
    "names as numpy prints them": ("['joy' 'sadness']", None, False, "list of labels that neither"),
    "names over two lines": ("['joy'\n 'sadness']", None, False, "list of labels that neither"),
    "a list cut short": ("['joy', 'sad]", None, False, "list of labels that neither"),
    "a deep list": ("[" * 100_000 + "]" * 100_000, None, False, "list of labels that neither"),
    "a list in a list": ([["joy"]], None, False, "label of type list"),
    "an unknown id": ("1,9", NAMES, True, "unknown label '9'"),
    "an id that was not told": ("1", ["neg", "pos"], False, "unknown label '1'"),
    "ids where names are numbers": ("0", ["1", "2"], True, "unknown label '0'"),
    "two names but for case": ("JOY", ["joy", "Joy"], True, "unknown label 'JOY'"),
    "nothing in a list": (["joy", None], None, False, MISSING),
    "no number in a list": (["joy", math.nan], None, False, MISSING),
    "null": (None, None, False, MISSING),
    "a masked id": ([1, -100], NAMES, True, MISSING),
    "half a character": (["\ud83d"], None, False, "not valid Unicode"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_cells_of_several_labels_that_are_refused(case):
    cell, names, told, message = REFUSED[case]
    label, fault = Labels(MULTI, names, told=told).read(cell)
    assert label is None
    assert re.search(message, fault)


def test_a_column_with_ids_and_vectors_is_refused():
    two = ["neg", "pos"]
    assert sets([[0, 1], [1, 1], [0, 0]], two, told=True) == [["pos"], two, []]
    assert sets(["0", "1"], two, told=True) == [["neg"], ["pos"]]
    assert sets(["0", "1"], ["toxic"], told=True) == [[], ["toxic"]]  # a vector of one place
    assert sets(["0|1", "1"], ["0", "1"], told=True) == [["0", "1"], ["1"]]
    for cells, names in (
        ([[0, 1], [1]], two),
        ([[0, 1, 0], [2]], ["a", "b", "c"]),
        ([[0, 1], [1, 1]], ["0", "1"]),
    ):
        with pytest.raises(InputError, match=r"read in two ways, .*with \| between"):
            read(MULTI, cells, names, told=True)
    with pytest.raises(InputError, match=r"\[1, 0\] as two ids, or as a 0/1 vector"):
        read(MULTI, [[1, 0], [0, 1]])
    assert sets([[0, 1], [1], [5]]) == [["0", "1"], ["1"], ["5"]]


ONE = {  # case -> cell, data.labels, the label or what is said
    "a name with a comma": ("food, drink", None, "food, drink"),
    "a name in brackets": ("[other]", None, "[other]"),
    "a name with |": ("joy|sadness", None, "joy|sadness"),
    "the text nan": ("nan", None, "nan"),
    "an id": (1, ["neg", "pos"], "pos"),
    "an id in text": ("0", ["neg", "pos"], "neg"),
    "an id as pandas writes it beside NaN": (1.0, ["neg", "pos"], "pos"),
    "a name but for case": ("POS", ["neg", "pos"], "pos"),
    "a truth value as pandas writes it": ("True", ["false", "true"], "true"),
    "a whole number": (1.0, ["0", "1"], "1"),
    "a number without what pandas adds": ("1", ["0.0", "1.0"], "1.0"),
    "a name that looks like ids": ("8,20", ["8,20", "1"], "8,20"),
    "a minus that is a name": ("-", ["+", "-"], "-"),
    "ids": ("8,20", None, (r"several labels .*problem_type: multi_label_classification", "")),
    "a vector": ("1 0 0 1", None, ("several labels", "")),
    "a list": (["joy"], None, ("several labels", "")),
    "a list in text": ("['joy']", None, ("several labels", "")),
    "NaN": (math.nan, None, (MISSING, "")),
    "Infinity": (-math.inf, None, (MISSING, "")),
    "a masked id": (-100, ["neg", "pos"], (MISSING, "")),
    "a withheld id": ("-1", ["neg", "pos"], (MISSING, "")),
    "the minus of SNLI": ("-", None, (r"missing label: '-', .*data\.labels", "")),
    "the minus beside names": ("-", ["neg", "pos"], ("missing label: '-'", "")),
    "half a character": ("a\udc00", None, ("not valid Unicode", "")),
    "an id without a name": (2, ["neg", "pos"], ("unknown label '2'", "")),
}


@pytest.mark.parametrize("case", ONE)
def test_cells_of_one_label(case):
    cell, names, expected = ONE[case]
    label, fault = Labels(SINGLE, names, told=names is not None).read(cell)
    if isinstance(expected, tuple):
        assert label is None
        assert re.search(expected[0], fault)
    else:
        assert (label, fault) == (expected, None)


def test_a_number_that_is_none_is_missing():
    for value in (math.nan, math.inf, None, ""):
        assert Labels(REGRESSION, None).read(value) == (None, MISSING)
    assert Labels(REGRESSION, None).read("0.5") == (0.5, None)


def test_columns_of_0_and_1():
    names = ["toxic", "insult"]
    cells = [["1", "0"], [1, True], ["0.0", 1.0], ["False", "0"], ["2", "0"], ["1", ""], [-1, -1]]
    _, labels, faults = read(MULTI, cells, names, told=True, columns=True)
    assert labels == [["toxic"], names, ["insult"], []]
    wrong = "label other than 0 or 1 in column 'toxic'"
    assert faults == [None] * 4 + [wrong, MISSING, MISSING]


@pytest.fixture
def load(tmp_path, tiny_tokenizer_dir):
    """Writes rows to a JSON lines file, or text to a csv file, and loads it."""
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def run(content, *, kind=SINGLE, labels=None, **settings):
        name = "train.csv" if isinstance(content, str) else "train.jsonl"
        if not isinstance(content, str):
            content = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_text(content)
        settings = {"cache_dir": str(tmp_path / "cache"), **settings}
        data = DataConfig(train=[str(tmp_path / name)], **settings)
        return load_examples(data, "train", tokenizer, problem_type=kind, labels=labels)

    return run


@pytest.mark.parametrize("streaming", [False, True])
def test_several_columns_of_a_file(load, streaming):
    content = 'text,toxic,threat,insult\n"good\nfilm",1,0,0\nbad,0,0,0\nfine,1,0,1\n'
    options = {"kind": MULTI, "streaming": streaming}
    examples, names = load(content, label=["toxic", "insult"], **options)
    assert names == ["toxic", "insult"]
    assert examples.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert load(content, label=["threat"], **options)[0].labels.tolist() == [[0], [0], [0]]
    with pytest.raises(InputError, match=r"no column 'hate' \(data\.label\)"):
        load(content, label=["toxic", "hate"], **options)
    rows = [{"text": "good", "a": 1, "b": 0}, {"text": "bad", "a": 1}]
    with pytest.raises(InputError, match=r"1 × missing label \(.*row 2\)"):
        load(rows, label=["a", "b"], **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_was_learned_is_told(load, caplog, streaming):
    caplog.set_level("INFO")
    content = "text,label\n" + "".join(f"good,class {i}\n" for i in range(12))
    for _ in range(2):  # from the file, and from the cache
        caplog.clear()
        load(content, streaming=streaming)
        assert "12 labels in column 'label' (data.label): class 0, class 1, class 10" in caplog.text
        assert ", class 7, …" in caplog.text
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    load(content, labels=[f"class {i}" for i in range(12)], streaming=streaming)
    assert "12 labels" not in caplog.text


def test_labels_that_look_like_a_scale_are_told(load, caplog):
    def warned(values):
        caplog.clear()
        load([{"text": "good", "label": value} for value in values])
        return "model.problem_type: regression" in caplog.text

    assert warned(["4.2", "0.4", "5.0", "1.6", "3.8"])
    assert warned([4.25, 0.5, 1, "3"])
    assert not warned([1.0, 0.0, 2.0, 3.0])
    assert not warned(["1", "2", "3", "4", "5"])
    assert not warned(["1.5", "2.5", "good"])


def test_a_header_among_the_rows_is_told_with_its_row(load, caplog):
    content = "text,label\ngood,pos\nbad,neg\ntext,label\nfine,pos\ntext,label\n"
    for settings in ({}, {"max_train_examples": 1}):
        caplog.clear()
        assert load(content, **settings)[1] == ["label", "neg", "pos"]
        assert "the column's own name, 'label'" in caplog.text
        assert "train.csv: row 3; " in caplog.text
        assert "train.csv: row 5)" in caplog.text
    caplog.clear()
    load(content.replace(",label", ",tags"), kind=MULTI, label="tags")
    assert "the column's own name, 'tags'" in caplog.text
    with pytest.raises(InputError, match=r"unknown label 'label' \(.*row 3, 5\)"):
        load(content, labels=["neg", "pos"])


def test_labels_that_differ_in_case_are_told(load, caplog):
    load("text,label\ngood,Pos\nbad,neg\nfine,pos\n")
    assert "labels that differ in case only are different labels: Pos, pos" in caplog.text


def test_a_label_that_cannot_be_saved_is_a_bad_row(load):
    rows = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b\ud83d"}]
    with pytest.raises(InputError, match=r"1 × label that is not valid Unicode \(.*row 2\)"):
        load(rows)


@pytest.fixture
def hub(tmp_path, tiny_tokenizer_dir):
    """Saves columns as the Hub gives them, and loads the labels of one of them."""
    import datasets

    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    names = datasets.ClassLabel(names=["pos", "neg"])
    kinds = {"one": names, "several": datasets.List(names), "id": datasets.Value("int64")}
    kinds |= {"flags": datasets.List(datasets.Value("float32")), "text": datasets.Value("string")}

    def run(column, values, *, kind=SINGLE, **settings):
        rows = {"text": ["good"] * len(values), column: values}
        features = datasets.Features({name: kinds[name] for name in rows})
        folder = tmp_path / column
        part = datasets.Dataset.from_dict(rows, features=features)
        part.to_parquet(str(folder / "train.parquet"))
        data = DataConfig(
            dataset=str(folder), label=column, cache_dir=str(tmp_path / "c"), **settings
        )
        return load_examples(data, "train", tokenizer, problem_type=kind, labels=None)

    return run


def test_class_ids_of_a_hub_data_set(hub):
    examples, names = hub("one", [0, 1, -1, 1], on_bad_row="drop")
    assert names == ["pos", "neg"]
    assert examples.labels.tolist() == [0, 1, 1]
    assert examples.report.dropped == {MISSING: 1}
    examples, _ = hub("one", [0, 1], labels=["NEG", "POS"])  # another order: names, not ids, count
    assert examples.labels.tolist() == [1, 0]
    examples, _ = hub("several", [[0, 1], [1], [], [-1]], kind=MULTI, on_bad_row="drop")
    assert examples.labels.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert examples.report.dropped == {MISSING: 1}
    examples, _ = hub("id", [0, 1, -100], labels=["neg", "pos"], on_bad_row="drop")
    assert examples.labels.tolist() == [0, 1]
    examples, _ = hub("flags", [[0, 1, 0], [1, 1, 0]], kind=MULTI, labels=["a", "b", "c"])
    assert examples.labels.tolist() == [[0, 1, 0], [1, 1, 0]]
    with pytest.raises(InputError, match=r"1 × unknown label '7' \(.*row 2\)"):
        hub("id", [0, 7], labels=["neg", "pos"])


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"label": ["a", "b"]}, {}, "data.label is a list of columns"),
        ({"label": ["a", "a"]}, {"problem_type": MULTI}, "a list of different columns"),
        ({"label": []}, {"problem_type": MULTI}, "a list of different columns"),
        ({"label": ["a", "text"]}, {"problem_type": MULTI}, "another column than"),
        (
            {"label": ["a"], "labels": ["b"]},
            {"problem_type": MULTI},
            "the names of the columns in data.label are the labels",
        ),
        ({"label": ["a"]}, {"task": "token-classification"}, "one column, as model.task"),
        ({"labels": ["a", "b\ud83d"]}, {}, "half of a surrogate pair"),
    ],
)
def test_settings_at_odds(data, model, message):
    config = Config(ModelConfig(path="x", **model), DataConfig(train=["a.csv"], **data))
    with pytest.raises(InputError, match=message):
        check(config)
