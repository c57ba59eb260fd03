"""Tokenized text on disk is believed only where its bytes are those that were written."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from jaxllm.config.fields import QAConfig
from jaxllm.config.reading import DataConfig
from jaxllm.data import cache
from jaxllm.data.corpus import load_examples
from jaxllm.data.documents import load_documents
from jaxllm.data.sentences import load_sentences
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.window_cache import load_windows

FILES = {
    "a.tsv": "text\tlabel\ngood film\ta\nbad\tb\nfine\ta\n",
    "a.conll": "good O\nfilm B-X\n\nbad O\n\n",
    "a.txt": "the film was good\n\nthe book\nwas bad\n",
    "a.json": json.dumps(
        [
            {
                "context": "The film was good.",
                "qas": [
                    {"question": "what", "answers": [{"text": "film", "answer_start": 4}]},
                    {"question": "who", "answers": []},
                ],
            }
        ]
    ),
}
SINGLE = "single_label_classification"


def copied(values):
    """Arrays in memory: those of an entry are its files, which tests change."""
    return {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}


@pytest.fixture
def load(tmp_path, tiny_tokenizer_dir):
    """The arrays of the four kinds of data, by the name of the file they come from."""
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def run(name):
        path = tmp_path / name
        path.write_text(FILES[name])
        data = DataConfig(train=[str(path)], cache_dir=str(tmp_path / "cache"), max_length=24)
        if name == "a.tsv":
            found = load_examples(data, "train", tokenizer, problem_type=SINGLE, labels=None)
        elif name == "a.conll":
            found = load_sentences(data, "train", tokenizer, None)
        elif name == "a.txt":
            (shard,) = load_documents(data, "train", tokenizer).shards
            return copied(shard._asdict())
        else:
            qa = QAConfig(max_question_length=4, doc_stride=2)
            found = load_windows(data, qa, "train", tokenizer)
        return copied({f.name: getattr(found[0], f.name) for f in dataclasses.fields(found[0])})

    return run


def the_entry(tmp_path):
    (entry,) = (tmp_path / "cache").iterdir()
    return entry


def same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


@pytest.mark.parametrize("name", FILES)
def test_other_bytes_are_noticed_and_made_again(name, load, tmp_path, caplog):
    before = load(name)
    names = sorted(path.name for path in the_entry(tmp_path).iterdir())
    assert len(names) >= 5
    for file in names:
        path = the_entry(tmp_path) / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        caplog.clear()
        same(before, load(name))
        assert "damaged" in caplog.text
        assert file in caplog.text
        caplog.clear()
        same(before, load(name))  # what was made again is right
        assert not caplog.text or "damaged" not in caplog.text


def test_a_cache_that_was_not_damaged_is_hashed_once_in_a_process(load, monkeypatch):
    load("a.tsv")
    hashed = []
    crc32 = zlib.crc32
    load("a.tsv")
    monkeypatch.setattr(cache.zlib, "crc32", lambda *x: hashed.append(len(x[0])) or crc32(*x))
    load("a.tsv")
    assert len(hashed) == 1  # the description


WRONG = [
    # file, array, what its numbers become, and what is said of it
    ("a.tsv", "tokens", lambda x: x + 1000, "tokens are not within 0"),
    ("a.tsv", "tokens", lambda x: x * 0 - 1, "tokens are not within 0"),
    ("a.tsv", "labels", lambda x: x + 1, "labels are not within 0 and 1"),
    ("a.tsv", "labels", lambda x: x - 1, "labels are not within 0 and 1"),
    ("a.tsv", "offsets", lambda x: x[[0, 2, 1, 3]], "offsets do not rise from 0 to"),
    ("a.tsv", "offsets", lambda x: x + 1, "offsets do not rise from 0 to"),
    ("a.tsv", "offsets", lambda x: x[:-1], "arrays are not of one length"),
    ("a.tsv", "type_ids", lambda x: x[:-1], "arrays are not of one length"),
    ("a.tsv", "rows", lambda x: x[:-1], "labels are not a number for each row"),
    ("a.conll", "word_labels", lambda x: x + 5, "word_labels are not within -1 and 2"),
    ("a.conll", "labels", lambda x: x - 1, "labels are not within -1 and 2"),
    ("a.conll", "word_tokens", lambda x: x + 5, "word_tokens are not within -1"),
    ("a.conll", "text_offsets", lambda x: x * 2, "text_offsets do not rise from 0 to"),
    ("a.conll", "text", lambda x: x[:-1], "text_offsets do not rise from 0 to"),
    ("a.txt", "tokens", lambda x: x + 1000, "tokens are not within 0"),
    ("a.txt", "lines", lambda x: x[::-1], "lines do not rise from 0 to"),
    ("a.txt", "documents", lambda x: x * 2, "documents do not rise from 0 to"),
    ("a.json", "labels", lambda x: x + 30, "windows reach beyond their tokens"),
    ("a.json", "source", lambda x: x + 30, "windows reach beyond their tokens"),
    ("a.json", "end", lambda x: x + 30, "windows reach beyond their tokens"),
    ("a.json", "question", lambda x: x + 2, "question are not within 0 and 1"),
    ("a.json", "offsets", lambda x: x[::-1], "offsets do not rise from 0 to"),
]


@pytest.mark.parametrize(("name", "array", "change", "message"), WRONG)
def test_numbers_out_of_range_are_noticed_even_with_their_checksum(
    name, array, change, message, load, tmp_path, caplog
):
    before = load(name)
    entry = the_entry(tmp_path)
    meta = json.loads((entry / "meta.json").read_text())
    content = meta["content"]
    changed = np.ascontiguousarray(change(np.array(before[array])), before[array].dtype)
    (entry / f"{array}.bin").write_bytes(changed.tobytes())
    content["arrays"][array][1] = list(changed.shape)
    content["checksums"][array] = zlib.crc32(changed.tobytes())
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (entry / "meta.json").write_text(json.dumps({"checksum": checksum, "content": content}))
    same(before, load(name))
    assert f"damaged ({message}" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"content": 1}'])
def test_a_description_of_any_kind_is_only_damaged(content, load, tmp_path, caplog):
    before = load("a.tsv")
    (the_entry(tmp_path) / "meta.json").write_bytes(content)
    same(before, load("a.tsv"))
    assert "damaged" in caplog.text
