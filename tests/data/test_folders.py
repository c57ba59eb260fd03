"""Folders of texts, as IMDB comes: what is a text, what its label, and in which order."""

import gzip
import logging
from dataclasses import replace

import numpy as np
import pytest

from jaxllm.config.reading import DataConfig
from jaxllm.data.corpus import load_examples, load_tokenizer
from jaxllm.data.documents import load_documents
from jaxllm.data.folders import folder_source
from jaxllm.data.readers import document_source, file_source
from jaxllm.errors import InputError

SINGLE = "single_label_classification"
IMDB = {  # as in aclImdb/train
    "labeledBow.feat": "9 0:9 1:1",
    "urls_pos.txt": "http://www.imdb.com/title/tt0453418/usercomments",
    "neg/0_3.txt": "a bad film<br /><br />with poor acting",
    "neg/10_1.txt": "they hated it",
    "neg/1_4.txt": "not good\nat all",
    "pos/0_9.txt": "a great film",
    "pos/1_7.txt": "we loved it",
    "pos/.DS_Store": "\0",
    "unsup/0_0.txt": "it is a film",
}


def write(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def imdb(tmp_path):
    return write(tmp_path / "aclImdb" / "train", IMDB)


def rows_of(folder, *, labelled=True, **settings):
    rows = folder_source(folder, DataConfig(**settings), labelled=labelled).rows()
    return [(row.number, row.file, row.text, row.label) for row in rows]


@pytest.fixture
def load(tmp_path, tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def run(*folders, split="train", kind=SINGLE, labels=None, **settings):
        settings = {"cache_dir": str(tmp_path / "cache"), split: list(map(str, folders))} | settings
        data = DataConfig(**settings)
        return load_examples(data, split, tokenizer, problem_type=kind, labels=labels)

    return run


def test_a_file_is_a_text_and_its_folder_the_label(imdb, caplog):
    caplog.set_level(logging.INFO)
    assert rows_of(imdb) == [
        (1, "neg/0_3.txt", "a bad film<br /><br />with poor acting", "neg"),
        (2, "pos/0_9.txt", "a great film", "pos"),
        (3, "neg/10_1.txt", "they hated it", "neg"),
        (4, "pos/1_7.txt", "we loved it", "pos"),
        (5, "neg/1_4.txt", "not good\nat all", "neg"),
    ]
    assert "files beside the folders are left out: labeledBow.feat, urls_pos.txt" in caplog.text
    assert f"{imdb / 'unsup'}: left out, as its texts have no label" in caplog.text


def test_unsup_is_read_where_it_is_named(imdb):
    labels = [label for *_, label in rows_of(imdb, labels=["neg", "pos", "unsup"])]
    assert labels == ["neg", "pos", "unsup", "neg", "pos", "neg"]
    assert rows_of(imdb / "unsup") == [(1, "unsup/0_0.txt", "it is a film", "unsup")]
    assert rows_of(imdb / "unsup" / ".") == rows_of(imdb / "unsup")
    texts = [text for _, _, text, label in rows_of(imdb, labelled=False) if label is None]
    assert len(texts) == 6  # who reads no labels takes all texts
    assert "it is a film" in texts


def test_folders_become_examples_and_label_names(imdb, load):
    examples, names = load(imdb)
    assert names == ["neg", "pos"]
    assert examples.labels.tolist() == [0, 1, 0, 1, 0]
    assert examples.rows.tolist() == [1, 2, 3, 4, 5]
    first, _ = load(imdb, max_train_examples=2)
    assert first.labels.tolist() == [0, 1]  # not two of the first class
    apart, names = load(imdb / "pos", imdb / "neg")
    assert names == ["neg", "pos"]
    assert apart.labels.tolist() == [1, 1, 0, 0, 0]
    stars, names = load(
        write(imdb.parent / "stars", {"1/a": "bad", "5/a": "good"}), kind="regression"
    )
    assert stars.labels.tolist() == [1.0, 5.0]
    held, _ = load(
        imdb, split="dev", labels=["neg", "pos"], train=[str(imdb)], dev=[], dev_fraction=0.4
    )
    assert sorted(held.labels.tolist()) == [0, 1]


def test_the_cache_knows_names_and_contents(imdb, load):
    before, _ = load(imdb)
    (imdb / "pos" / "1_7.txt").rename(imdb / "neg" / "1_7.txt")
    moved, _ = load(imdb)
    assert moved.labels.sum() == before.labels.sum() - 1
    (imdb / "pos" / "0_9.txt").write_text("good")
    changed, _ = load(imdb)
    assert len(changed.tokens) == len(moved.tokens) - 2
    (imdb / "pos").rename(imdb / "positive")
    assert load(imdb)[1] == ["neg", "positive"]


def test_encodings_and_packed_files(tmp_path):
    texts = {
        "a/1": "schön".encode("utf-16"),
        "a/2.gz": gzip.compress("schön".encode()),
        "b/1.txt": b"\xef\xbb\xbfsch\xc3\xb6n\r\n",
    }
    found = rows_of(write(tmp_path / "folder", texts))
    assert [text.strip() for _, _, text, _ in found] == ["schön"] * 3


def test_files_that_cannot_be_used_are_named(imdb, load, tmp_path):
    write(imdb, {"pos/3_8.txt": "", "pos/2_8.txt": "good " * 100})
    with pytest.raises(InputError) as error:
        load(imdb, max_row_bytes=400)
    message = str(error.value)
    assert f"1 × missing text ({imdb}: file 7 (pos/3_8.txt))" in message
    assert f"1 × longer than data.max_row_bytes=400 ({imdb}: file 6 (pos/2_8.txt))" in message
    assert "header" not in message
    with pytest.raises(InputError, match=r"longer than data.max_length=20 \(.*pos/2_8\.txt\)"):
        load(imdb, truncation="error", max_length=20, on_bad_row="drop")
    write(imdb, {"pos/4_8.txt": b"sch\xf6n"})
    with pytest.raises(InputError, match=r"pos/4_8\.txt, line 1: byte 0xf6 .*cp1252 \(schön\)"):
        load(imdb)
    examples, _ = load(imdb, on_bad_row="drop")
    assert examples.report.dropped == {"missing text": 1, "cannot be read": 1}
    assert len(examples) == 6


def test_labels_that_are_given_are_all_that_there_may_be(imdb, load):
    with pytest.raises(InputError, match=r"unknown label 'pos'.*\(pos/0_9\.txt\)"):
        load(imdb, labels=["neg", "positive"])


BAD = {
    "no texts": ({"pos/a": "x"}, "neg", {}, r"neg: the folder is empty; expected a folder with"),
    "deeper": (
        {"fold1/pos/a": "x", "fold1/neg/a": "x", "fold2/pos/a": "x"},
        None,
        {},
        r"fold1: holds the folders neg, pos, expected files.*in place of .* name the folders whose",
    ),
    "a table": (
        {"pos/a": "x"},
        None,
        {"format": "csv"},
        r"data\.format: found 'csv', expected auto",
    ),
    "pairs": (
        {"pos/a": "x"},
        None,
        {"text_pair": "b"},
        r"data\.text_pair: found 'b', expected null",
    ),
    "choices": ({"pos/a": "x"}, None, {"choices": ["b"]}, r"data\.choices: .* expected null"),
    "columns": ({"pos/a": "x"}, None, {"label": ["b"]}, r"data\.label: .* expected one label"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_get_one_clear_message(case, tmp_path):
    texts, empty, settings, message = BAD[case]
    folder = write(tmp_path / "folder", texts)
    if empty:
        (folder / empty).mkdir()
    with pytest.raises(InputError, match=message):
        file_source(folder, DataConfig(**settings), labelled=True)


def test_a_folder_is_a_corpus_of_documents(imdb, tmp_path, tiny_tokenizer_dir):
    data = DataConfig(train=[str(imdb / "neg")], cache_dir=str(tmp_path / "cache"))
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    documents = load_documents(data, "train", tokenizer)
    (shard,) = documents.shards
    assert np.diff(shard.documents).tolist() == [1, 1, 2]  # lines of each
    assert len(list(document_source(imdb, data).rows())) == 6
    with pytest.raises(InputError, match=r"row 1 \(neg/0_3\.txt\): longer than"):
        load_documents(replace(data, max_row_bytes=20), "train", tokenizer)
    write(imdb, {"neg/9.txt": b"\xf6"})
    with pytest.raises(InputError, match=r"neg/9\.txt, line 1: byte 0xf6"):
        load_documents(data, "train", tokenizer)


def test_a_folder_is_no_column_of_pairs(imdb):
    with pytest.raises(InputError, match="is not a file"):
        file_source(imdb, DataConfig(), labelled=False)


def test_a_text_file_with_labels_points_to_folders(imdb):
    with pytest.raises(InputError, match=r"label missing.*name the folder of the folders"):
        file_source(imdb / "pos" / "0_9.txt", DataConfig(), labelled=True)
