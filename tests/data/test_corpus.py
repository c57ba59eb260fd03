"""Reading, labels, truncation, and the cache: what is kept, and what each bad input says."""

import gzip
import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxllm.config.reading import DataConfig
from jaxllm.data import cache, corpus, threads
from jaxllm.data.corpus import load_examples, load_tokenizer
from jaxllm.data.tokenizer import Encoder, shares
from jaxllm.errors import InputError

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def load(tmp_path, tokenizer):
    """Writes ``content`` to a file ``name`` and loads it; settings by name."""

    def run(content, name="train.tsv", *, split="train", kind=SINGLE, labels=None, **settings):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        settings = {split: [str(path)], "cache_dir": str(tmp_path / "cache"), **settings}
        return load_examples(
            DataConfig(**settings), split, tokenizer, problem_type=kind, labels=labels
        )

    return run


@pytest.fixture
def texts(tokenizer):
    """The words of each example, without the special tokens."""

    def run(examples):
        bounds = zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
        return [tokenizer.decode(examples.tokens[a:b], skip_special_tokens=True) for a, b in bounds]

    return run


FORMATS = {
    "train.tsv": 'text\tlabel\na "good film\tpos\nnot good\tneg\n',
    "train.csv": 'label,text\r\npos,"a ""good film"\r\nneg,not good\r\n',
    "train.jsonl": '{"text": "a \\"good film", "label": "pos"}\n'
    '{"label": "neg", "text": "not good"}\n',
    "train.json": '[{"text": "a \\"good film", "label": "pos"},\n'
    ' {"label": "neg", "text": "not good"}]\n',
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_examples(load, texts, name, suffix, streaming):
    examples, names = load(FORMATS[name], name + suffix, streaming=streaming)
    assert texts(examples) == ['a " good film', "not good"]
    assert names == ["neg", "pos"]
    assert examples.labels.tolist() == [1, 0]
    assert examples.rows.tolist() == ([1, 2])
    assert examples.tokens.dtype == examples.labels.dtype == np.int32
    assert examples.type_ids.dtype == np.uint8
    assert examples.lengths.tolist() == [6, 4]
    assert examples.report == corpus.ReadReport(read=2, kept=2)


def test_tsv_takes_quotes_as_text_and_csv_as_quotes(load, texts):
    quoted = 'text{0}label\n"good{0}a\nbad"{0}b\n'
    assert texts(load(quoted.format("\t"))[0]) == ['" good', 'bad "']
    lines = 'text,label\n"good\nfilm, fine",a\nbad,b\n'
    examples, _ = load(lines, "train.csv")
    assert texts(examples) == ["good film, fine", "bad"]
    assert examples.rows.tolist() == [1, 2]


def test_words_that_other_readers_take_for_missing_stay_text(load, texts):
    examples, names = load("text,label\nNA,null\n1.0,nan\n2020-01-01,null\n", "train.csv")
    assert texts(examples) == ["na", "1. 0", "2020 - 01 - 01"]
    assert names == ["nan", "null"]


def test_files_without_a_header_take_their_names_from_the_config(load, texts):
    content = "x\tgood film\tb\nx\tbad film\ta\textra\t\n"
    columns = ["id", "text", "label", "note"]
    examples, _ = load(content, "train.txt", format="tsv", columns=columns)
    assert texts(examples) == ["good film", "bad film"]
    assert examples.rows.tolist() == [1, 2]


def test_a_byte_order_mark_and_blank_lines_are_skipped_but_counted(load):
    examples, _ = load(b"\xef\xbb\xbftext\tlabel\n\ngood\ta\n\nbad\tb\n\n")
    assert examples.rows.tolist() == [2, 4]


def test_pairs_have_token_types_and_both_texts(load, texts):
    examples, _ = load(
        "a,b,label\ngood film,bad,x\nbad,a,y\n", "train.csv", text="a", text_pair="b"
    )
    assert texts(examples) == ["good film bad", "bad a"]
    assert examples.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


def test_whole_numbers_are_labels_in_numeric_order(load):
    rows = "".join(f"good\t{n}\n" for n in (10, 9, 2, -1))
    assert load("text\tlabel\n" + rows)[1] == ["-1", "2", "9", "10"]
    rows = "".join(json.dumps({"text": "good", "label": n}) + "\n" for n in (1, 0, True))
    assert load(rows, "train.jsonl")[1] == ["0", "1", "true"]


def test_given_labels_fix_the_ids(load):
    content = "text\tlabel\ngood\tpos\nbad\tneg\n"
    for examples, names in (
        load(content, labels=["pos", "other", "neg"]),
        load(content, split="dev", labels=["pos", "other", "neg"]),
    ):
        assert names == ["pos", "other", "neg"]
        assert examples.labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match="those of the training part"):
        load(content, split="dev")


@pytest.mark.parametrize("name", ["train.tsv", "train.jsonl"])
def test_several_labels_become_vectors(load, name):
    values = ["sad|long", "long", "sad | funny"], [["sad", "long"], "long", ["sad", "funny"]]
    if name == "train.tsv":
        content = "text\tlabel\n" + "".join(f"good\t{value}\n" for value in (*values[0], "|"))
    else:
        rows = ({"text": "good", "label": value} for value in (*values[1], []))
        content = "".join(json.dumps(row) + "\n" for row in rows)
    examples, names = load(content, name, kind=MULTI)
    assert names == ["funny", "long", "sad"]
    assert examples.labels.dtype == np.float32
    assert examples.labels.tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]]


def test_numbers_are_regression_labels(load):
    examples, names = load("text\tlabel\ngood\t4.5\nbad\t-1e-1\n", kind=REGRESSION)
    assert names == []
    assert examples.labels.dtype == np.float32
    np.testing.assert_allclose(examples.labels, [4.5, -0.1])
    with pytest.raises(InputError, match=r"label that is not a number \(.*: row 2\)"):
        load("text\tlabel\ngood\t4.5\nbad\tnan\n", kind=REGRESSION)


def test_text_alone_needs_no_label(load, texts):
    examples, names = load("good film\n\n bad\n", "train.txt", kind=None)
    assert (texts(examples), names, examples.labels) == (["good film", "bad"], [], None)


HEADER = "text\tlabel\n"
BAD = {
    "empty file": (b"", "train.tsv", {}, r"train\.tsv: the file is empty"),
    "header only": (HEADER, "train.tsv", {}, r"train\.tsv: no rows"),
    "header only, csv": ("text,label\n", "train.csv", {}, r"train\.csv: no rows"),
    "blank lines": ("\n\n", "train.jsonl", {}, r"train\.jsonl: no rows"),
    "no column": (
        "review,label\ngood,a\n",
        "train.csv",
        {},
        r"no column 'text' \(data\.text\); the columns there are 'review', 'label'",
    ),
    "no column, jsonl": (
        '{"review": "good", "label": 1}\n',
        "train.jsonl",
        {},
        r"no column 'text' .*'review', 'label'",
    ),
    "no pair column": (HEADER + "a\tb\n", "train.tsv", {"text_pair": "b"}, r"data\.text_pair"),
    "column twice": ("text,text,label\na,b,c\n", "train.csv", {}, r"2 columns 'text'"),
    "not utf-8": (
        HEADER.encode() + b"good\ta\n" + "café\tb\n".encode("latin1"),
        "train.tsv",
        {},
        r"train\.tsv, line 3: byte 0xe9 at offset 21 is not UTF-8",
    ),
    "not utf-8, gz": (
        b'{"text": "a", "label": 0}\n{"text": "\xff"}\n',
        "train.jsonl.gz",
        {},
        r"line 2: byte 0xff at offset 36",
    ),
    "not utf-8, json": (b'[{"text": "\xff"}]', "train.json", {}, r"line 1: byte 0xff at offset 11"),
    "not json": (
        '{"text": "a", "label": 0}\n\n{"text": \n',
        "train.jsonl",
        {},
        r"train\.jsonl, line 3: not JSON",
    ),
    "not an object": ('{"text": "a", "label": 0}\n7\n', "train.jsonl", {}, r"line 2: found '7'"),
    "not a json array": (
        '[{"text": "a", "label": 0},\n',
        "train.json",
        {},
        r"train\.json: not JSON",
    ),
    "open quote": ('text,label\na,b\n"c,d\ne,f\n', "train.csv", {}, r"row 2 \(up to line 4\)"),
    "not gz": (None, "train.tsv.gz", {}, r"train\.tsv\.gz: cannot be read: Not a gzipped file"),
    "unknown ending": ("a\n", "train.xml", {}, r"train\.xml: the name does not tell the format"),
    "text with label": ("good film\n", "train.txt", {}, r"label missing.*data\.columns"),
    "one label": (HEADER + "good\ta\nbad\ta\n", "train.tsv", {}, r"has the label 'a' only"),
    "no room": (HEADER + "good\ta\nbad\tb\n", "train.tsv", {"max_length": 2}, r"max_length=2"),
    "all dropped": (
        HEADER + "\ta\n",
        "train.tsv",
        {"on_bad_row": "drop"},
        r"no row is left: 1 × m",
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(load, tmp_path, case, streaming):
    content, name, settings, message = BAD[case]
    if content is None:  # named .gz, and is not
        path = tmp_path / "train.tsv.gz"
        path.write_bytes(b"plain text\tlabel\n")
        content, settings = HEADER, {"train": [str(path)]}
        name = "other.tsv"
    with pytest.raises(InputError, match=message):
        load(content, name, streaming=streaming, **settings)
    assert not list((tmp_path / "cache").glob("*"))
    assert not list((tmp_path / "cache").glob(".*"))


def test_missing_files_and_no_files_are_named(load, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.tsv: no such file"):
        load("", train=["nowhere.tsv"])
    with pytest.raises(InputError, match="is not a file"):
        load("", train=[str(tmp_path)], kind=None)
    with pytest.raises(InputError, match=r"data\.train is empty"):
        load("", train=[])


ROWS = (
    [("good", "a"), ("bad", "b")] * 3
    + [("", "a"), (" ", "b"), ("fine", ""), ("fine", "c")]
    + [("good", "b")]
)
MIXED = HEADER + "".join(f"{text}\t{label}\n" for text, label in ROWS)


def test_bad_rows_stop_the_run_with_their_numbers(load, tmp_path):
    with pytest.raises(InputError) as error:
        load(MIXED, labels=["a", "b"])
    message = str(error.value)
    file = re.escape(str(tmp_path / "train.tsv"))
    assert re.search(rf"2 × missing text \({file}: row 7, 8\)", message)
    assert re.search(rf"1 × missing label \({file}: row 9\)", message)
    assert re.search(rf"1 × unknown label 'c' \({file}: row 10\)", message)
    assert "4 of 11 rows" in message
    assert "the labels are a, b" in message
    assert "data.on_bad_row: drop" in message
    many = HEADER + "good\ta\nbad\tb\n" + "\ta\n" * 30
    with pytest.raises(InputError, match=r"30 × .*row 3, 4, 5, 6, 7 and 25 more"):
        load(many)


def test_bad_rows_are_dropped_and_counted(load, caplog):
    examples, _ = load(MIXED + "x\ty\tz\n", labels=["a", "b"], on_bad_row="drop")
    assert examples.rows.tolist() == [1, 2, 3, 4, 5, 6, 11]
    assert examples.report.read == 12
    assert examples.report.kept == len(examples) == 7
    assert examples.report.dropped == {
        "missing text": 2,
        "missing label": 1,
        "unknown label 'c'": 1,
        "more than 2 fields": 1,
    }
    assert "dropped 5 rows: missing text (2)" in caplog.text


def test_an_empty_cell_is_an_empty_set_of_labels(load):
    examples, names = load(HEADER + "good\ta|b\nbad\t\nfine\tb\n", kind=MULTI)
    assert names == ["a", "b"]
    assert examples.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    none = '{"text": "good", "label": ["a"]}\n{"text": "bad", "label": null}\n{"text": "fine"}\n'
    with pytest.raises(InputError, match="2 × missing label"):
        load(none, "train.jsonl", kind=MULTI)


def test_an_unknown_label_of_the_dev_part_names_row_and_label(load):
    with pytest.raises(InputError, match=r"data\.dev: .*unknown label 'meh' \(.*dev\.tsv: row 2\)"):
        load(HEADER + "good\ta\nbad\tmeh\n", "dev.tsv", split="dev", labels=["a", "b"])


def test_text_and_labels_of_other_types_are_bad_rows(load):
    rows = [
        {"text": 7, "label": "a"},
        {"text": "good", "label": {}},
        {"text": "\ud83d", "label": 1},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(InputError) as error:
        load(content, "train.jsonl")
    for reason in ("text of type int", "label of type dict", "text that is not valid Unicode"):
        assert f"1 × {reason} (" in str(error.value)


LONG = HEADER + "good\ta\n" + "a b c d e f g h\tb\nbad\tb\n"


@pytest.mark.parametrize(("side", "kept"), [("right", "a b c"), ("left", "f g h")])
def test_too_long_texts_are_cut_and_counted(load, texts, caplog, side, kept):
    examples, _ = load(LONG, max_length=5, truncation=side)
    assert texts(examples) == ["good", kept, "bad"]
    assert examples.lengths.max() == 5
    assert examples.report.truncated == 1
    assert "1 texts truncated" in caplog.text


def test_too_long_texts_are_dropped_or_stop_the_run(load, texts):
    examples, _ = load(LONG, max_length=5, truncation="drop")
    assert texts(examples) == ["good", "bad"]
    assert examples.labels.tolist() == [0, 1]
    assert examples.report.dropped == {"longer than data.max_length=5": 1}
    with pytest.raises(InputError, match=r"longer than data\.max_length=5 .*row 2.*truncation: r"):
        load(LONG, max_length=5, truncation="error")


@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_are_cut_as_the_tokenizer_itself_would(tokenizer, rng, side):
    words = np.array(["a", "the", "film", "good", "bad", "story"])
    texts, pairs = (
        [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(60)] for _ in range(2)
    )
    encoded = Encoder(tokenizer, 16, side, pair=True).encode(texts, pairs)
    tokenizer.truncation_side = side
    expected = tokenizer(texts, pairs, truncation="longest_first", max_length=16)
    assert encoded.tokens.tolist() == [t for ids in expected["input_ids"] for t in ids]
    assert encoded.type_ids.tolist() == [t for ids in expected["token_type_ids"] for t in ids]
    assert encoded.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert (encoded.full_lengths > 16).sum() > 10
    tokenizer.truncation_side = "right"


def test_shares_of_many_are_those_of_each():
    first, second = (x.ravel() for x in np.mgrid[1:20, 1:20])
    wanted = [tuple(map(int, shares(a, b, 9))) for a, b in zip(first, second, strict=True)]
    assert [*zip(*(x.tolist() for x in shares(first, second, 9)), strict=True)] == wanted
    assert [wanted[i] for i in (0, 19, 20 * 8)] == [(1, 1), (2, 1), (4, 5)]


def test_shares_fill_the_room():
    for first in range(9):
        for second in range(9):
            a, b = shares(first, second, 7)
            assert a + b == min(7, first + second)
            assert 0 <= a <= first
            assert 0 <= b <= second


@pytest.mark.parametrize("pair", [None, "other"])
def test_a_row_of_100000_characters_is_cut_quickly(load, pair):
    text = "good film " * 10000
    row = f"{text}\t{text}\ta\n" + f"{'x' * 200000}\tgood\tb\n"
    settings = {"text_pair": pair, "max_length": 64}
    examples, _ = load("text\tother\tlabel\n" + row, **settings)
    assert examples.lengths[0] == 64
    assert examples.report.truncated == 1
    csv = "text,other,label\n" + f'"{text}","{text}",a\n{"x" * 200000},good,b\n'
    assert load(csv, "train.csv", **settings)[0].lengths[0] == 64


def test_limits_keep_the_first_rows_and_the_labels_of_all(load, texts):
    rows = [(f"good film {i % 7}", "ab"[i % 2]) for i in range(2500)] + [("bad", "c")]
    content = HEADER + "".join(f"{text}\t{label}\n" for text, label in rows)
    examples, names = load(content, max_train_examples=1200)
    assert len(examples) == 1200
    assert examples.offsets[-1] == len(examples.tokens) == len(examples.type_ids)
    assert texts(examples)[-1] == "good film 2"
    assert examples.rows.tolist() == list(range(1, 1201))
    assert names == ["a", "b", "c"]
    examples, names = load(content, max_train_examples=3, streaming=True)
    assert (len(examples), names) == (3, ["a", "b"])
    examples, _ = load(content, split="dev", labels=["a", "b"], max_dev_examples=5)
    assert len(examples) == 5


def test_several_files_follow_each_other_with_their_own_row_numbers(load, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "bad", "label": "b"}\n')
    (tmp_path / "a [1].tsv").write_text(HEADER + "good\ta\nfine\tb\n")
    files = [str(tmp_path / name) for name in ("a [1].tsv", "b.jsonl")]
    examples, _ = load("", train=files)
    assert examples.rows.tolist() == [1, 2, 1]


def test_the_number_of_workers_changes_nothing(load, monkeypatch):
    content = HEADER + "".join(f"good film {i}\t{'ab'[i % 2]}\n" for i in range(3456))
    started = []
    pool = threads.ThreadPoolExecutor
    monkeypatch.setattr(
        threads,
        "ThreadPoolExecutor",
        lambda workers, name: started.append(workers) or pool(workers, name),
    )
    results = [load(content, workers=w, streaming=True)[0] for w in (1, 3, 0)]
    assert started == [1, 3, os.cpu_count()]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].tokens, other.tokens)
        np.testing.assert_array_equal(results[0].offsets, other.offsets)
        np.testing.assert_array_equal(results[0].labels, other.labels)


def entries(tmp_path):
    return sorted((tmp_path / "cache").glob("*"))


def test_the_cache_is_by_content_and_settings(load, tmp_path, monkeypatch):
    content = HEADER + "good\ta\nbad\tb\n"
    before, _ = load(content)
    [entry] = entries(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(corpus.Builder, "run", lambda *_: pytest.fail("it was tokenized again"))
        examples, names = load(content, "renamed.tsv", workers=1)
    assert isinstance(examples.tokens, np.memmap)
    assert names == ["a", "b"]
    assert examples.report == before.report
    assert entries(tmp_path) == [entry]
    load(content + "fine\tb\n")
    load(content, max_length=64)
    load(content, labels=["b", "a"])
    load(content, on_bad_row="drop")
    load(content, max_train_examples=1)
    load(content, truncation="left")
    assert len(entries(tmp_path)) == 7
    load(content, streaming=True, max_length=32)
    assert len(entries(tmp_path)) == 7


def test_another_tokenizer_is_another_entry(tmp_path, tiny_tokenizer_dir, tokenizer):
    from transformers import BertTokenizer

    path = tmp_path / "train.tsv"
    path.write_text(HEADER + "Good\ta\nbad\tb\n")
    data = DataConfig(train=[str(path)], cache_dir=str(tmp_path / "cache"))
    cased = BertTokenizer(vocab=str(tiny_tokenizer_dir / "vocab.txt"), do_lower_case=False)
    for each in (tokenizer, cased):
        load_examples(data, "train", each, problem_type=SINGLE, labels=None)
    assert len(entries(tmp_path)) == 2
    # Padding that someone has switched on is no part of what the tokenizer does here.
    cased.backend_tokenizer.enable_padding(length=20)
    examples, _ = load_examples(data, "train", cased, problem_type=SINGLE, labels=None)
    assert examples.lengths.max() == 3
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["tokens.bin", "offsets.bin", "meta.json", "labels.bin"])
@pytest.mark.parametrize("how", ["truncated", "longer", "missing"])
def test_a_damaged_entry_is_made_again(load, tmp_path, damage, how):
    content = HEADER + "good film\ta\nbad\tb\n"
    before, _ = load(content)
    [entry] = entries(tmp_path)
    path = entry / damage
    size = path.stat().st_size
    if how == "truncated":
        with open(path, "r+b") as file:
            file.truncate(size - 1)
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"xxxx")
    else:
        path.unlink()
    after, _ = load(content)
    assert entries(tmp_path) == [entry]
    assert cache.read(entry, lambda *_: None) is not None
    assert path.stat().st_size == size
    assert not list((tmp_path / "cache").glob(".*"))
    for name in ("tokens", "type_ids", "offsets", "labels", "rows"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_a_full_disk_is_one_message_and_leaves_nothing(load, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*data\.cache_dir"):
        load(HEADER + "good\ta\nbad\tb\n")
    assert not list((tmp_path / "cache").iterdir())


def test_leftovers_of_killed_processes_go_after_a_day(load, tmp_path):
    for name, age in ((".tmp-old", 2), (".tmp-new", 0)):
        (tmp_path / "cache" / name).mkdir(parents=True)
        stamp = os.stat(tmp_path).st_mtime - age * 86400
        os.utime(tmp_path / "cache" / name, (stamp, stamp))
    load(HEADER + "good\ta\nbad\tb\n")
    assert [path.name for path in (tmp_path / "cache").glob(".*")] == [".tmp-new"]


SCRIPT = """
    import sys
    from pathlib import Path
    from jaxllm.config.reading import DataConfig
    from jaxllm.data.corpus import load_examples, load_tokenizer

    folder, vocabulary = sys.argv[1:]
    data = DataConfig(train=[folder + "/train.tsv"], cache_dir=folder + "/cache")
    tokenizer = load_tokenizer(vocabulary)
    print("ready", flush=True)
    sys.stdin.readline()
    examples, names = load_examples(
        data, "train", tokenizer, problem_type="single_label_classification", labels=None
    )
    assert "datasets" not in sys.modules
    print(len(examples), int(examples.tokens.sum()), names)
"""


def test_two_processes_may_write_one_entry_and_a_third_reads_it(tmp_path, tiny_tokenizer_dir):
    rows = "".join(f"good film {i}\t{'ab'[i % 2]}\n" for i in range(2000))
    (tmp_path / "train.tsv").write_text(HEADER + rows)
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(SCRIPT),
        str(tmp_path),
        str(tiny_tokenizer_dir),
    ]

    def start():
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    both = [start() for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    third = start()
    out, err = third.communicate("\n", timeout=600)
    assert third.returncode == 0, err
    assert outputs[0][0] == outputs[1][0]
    assert out == "ready\n" + outputs[0][0]
    assert out.split()[1] == "2000"
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_out_of_reach_is_said_with_the_offline_ways(load, streaming):
    with pytest.raises(InputError, match=r"data\.dataset=no/such .*give files .*HF_HOME"):
        load("", train=[], dataset="no/such", streaming=streaming)


@pytest.fixture
def hub(tmp_path):
    """A data set in the form in which the Hub gives it, with class names and a withheld label."""
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = {"sentence": ["good", "bad", "fine"], "label": [0, 1, -1]}
    folder = tmp_path / "set"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_brings_its_label_names(load, texts, hub, tmp_path, streaming):
    settings = {"train": [], "dataset": hub, "streaming": streaming, "text": "sentence"}
    with pytest.raises(InputError, match=r"missing label \(.*train_split=train.*: row 3\)"):
        load("", **settings)
    examples, names = load("", on_bad_row="drop", **settings)
    assert texts(examples) == ["good", "bad"]
    assert names == ["pos", "neg"]
    assert examples.labels.tolist() == [0, 1]
    assert len(entries(tmp_path)) == (0 if streaming else 1)
    with pytest.raises(InputError, match=r"no column 'label'|no column 'text'"):
        load("", **{**settings, "text": "text"})
    with pytest.raises(InputError, match=r"train_split=training.*cannot be loaded"):
        load("", train_split="training", **settings)


def test_a_cased_vocabulary_keeps_capitals(tmp_path, tokenizer):
    assert tokenizer.tokenize("Good Film") == ["good", "film"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Good", "good", "Film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    assert load_tokenizer(tmp_path).tokenize("Good good Film") == ["Good", "good", "Film"]


def test_a_saved_tokenizer_is_loaded_and_nothing_is_an_error(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (
        load_tokenizer(tmp_path / "saved")("a good film")["input_ids"]
        == (tokenizer("a good film")["input_ids"])
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"none: there is no tokenizer.*model\.tokenizer"):
        load_tokenizer(tmp_path / "none")


def test_processes_compare_what_they_have_read(load, monkeypatch):
    compared = []
    monkeypatch.setattr(
        corpus.processes, "check_same", lambda what, value: compared.append((what, value()))
    )
    rows = "text\tlabel\ngood film\tpos\nbad film\tneg\n"
    load(rows)
    load(rows, name="elsewhere.tsv")
    load(rows + "one more\tpos\n")
    first, same, other = compared
    assert first[0] == "the examples of data.train"
    assert first == same
    assert first != other
