"""Documents: where they end, what is kept of them, and where words begin."""

import gzip
import json

import numpy as np
import pytest

from jaxllm.config.reading import DataConfig
from jaxllm.data import document_builder, pieces
from jaxllm.data.documents import load_documents
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def load(tmp_path, tokenizer):
    """Writes files of the given contents and loads them; settings by name."""

    def run(files, words=None, **settings):
        for name, content in files.items():
            data = content.encode()
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        train = settings.pop("train", [n for n in files if not n.endswith(".seg")])
        settings = {"cache_dir": str(tmp_path / "cache"), **settings}
        data = DataConfig(train=[str(tmp_path / name) for name in train], **settings)
        return load_documents(data, "train", tokenizer, words=words)

    return run


@pytest.fixture
def texts(tokenizer):
    """The lines of each document of a shard."""

    def run(shard):
        lines = [
            tokenizer.decode(shard.tokens[a:b])
            for a, b in zip(shard.lines[:-1], shard.lines[1:], strict=True)
        ]
        bounds = zip(shard.documents[:-1], shard.documents[1:], strict=True)
        return [lines[a:b] for a, b in bounds]

    return run


BLANK_LINES = "\n  \nthe film\nwas good\n\n\t\n\nthe book\n"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_blank_lines_or_every_line_end_a_document(load, texts, suffix, streaming):
    name = "a.txt" + suffix
    (shard,) = load({name: BLANK_LINES}, streaming=streaming).shards
    assert texts(shard) == [["the film", "was good"], ["the book"]]
    assert shard.tokens.dtype == np.int32
    (shard,) = load({name: BLANK_LINES}, documents="line", streaming=streaming).shards
    assert texts(shard) == [["the film"], ["was good"], ["the book"]]


def test_a_row_of_another_file_is_a_document_and_empty_ones_are_counted(load, texts, caplog):
    rows = ["the film\n\nwas good", "", None, " \n", "the book"]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    with caplog.at_level("INFO"):
        (shard,) = load({"a.jsonl": lines}).shards
    assert texts(shard) == [["the film", "was good"], ["the book"]]
    assert "2 documents, 6 tokens of" in caplog.text
    assert "(3 empty)" in caplog.text


def test_a_document_without_a_token_counts_as_empty(load, texts, caplog):
    with caplog.at_level("INFO"):
        (shard,) = load({"a.txt": "\u200b\nthe film\n\n\u200b\n\nthe book\n\n\u200b\n"}).shards
    assert texts(shard) == [["the film"], ["the book"]]
    assert "(2 empty)" in caplog.text


def test_bad_rows_stop_or_are_dropped(load, texts, caplog):
    files = {"a.jsonl": '{"text": "the film"}\n{"text": 3}\n{"text": "\\ud83d"}\n'}
    with pytest.raises(InputError, match=r"a\.jsonl: row 2: text of type int; .*on_bad_row: drop"):
        load(files)
    with caplog.at_level("INFO"):
        (shard,) = load(files, on_bad_row="drop").shards
    assert texts(shard) == [["the film"]]
    assert "1 dropped: text of type int, 1 dropped: text that is not valid Unicode" in caplog.text


def test_empty_corpora(load):
    with pytest.raises(InputError, match=r"a\.txt: the file is empty"):
        load({"a.txt": ""})
    with pytest.raises(InputError, match=r"a\.txt: there is no document with a token \(1 are em"):
        load({"a.txt": "\n \n\u200b\n"})
    with pytest.raises(InputError, match=r"none\*\.txt: no such file"):
        load({}, train=["none*.txt"])


def test_an_entry_may_be_a_pattern_and_limits_count_documents(load, texts):
    files = {"a1.txt": "the film\n\nthe book\n", "a2.txt": "the story\n", "b.txt": "bad\n\ngood\n"}
    documents = load(files, train=["a*.txt", "b.txt"])
    assert documents.corpora.tolist() == [0, 0, 1]
    assert documents.begins.tolist() == [0, 4, 6]
    for streaming in (False, True):
        part = load(files, train=["a*.txt", "b.txt"], max_train_examples=4, streaming=streaming)
        shards = [texts(shard) for shard in part.shards]
        assert shards == [[["the film"], ["the book"]], [["the story"]], [["bad"]]]


def test_tokens_are_taken_across_shards(load, tokenizer):
    documents = load({"a.txt": "the film\n", "b.txt": "good book\n"})
    tokens, starts = documents.take(np.array([3, 0, 2, 3]))
    assert tokenizer.decode(tokens) == "book the good book"
    assert starts.all()


def test_each_file_is_tokenized_once(load, monkeypatch):
    first = load({"a.txt": "the film\n", "b.txt": "the book\n"})
    calls = []
    encode = document_builder.DocumentBuilder._encode
    monkeypatch.setattr(
        document_builder.DocumentBuilder,
        "_encode",
        lambda self, pieces: calls.append(pieces[0].text) or encode(self, pieces),
    )
    again = load({"c.txt": "good\n"}, train=["a.txt", "b.txt", "c.txt"], max_length=64)
    assert calls == ["good"]
    assert isinstance(again.shards[0].tokens, np.memmap)
    assert again.fingerprint != first.fingerprint
    load({}, train=["a.txt"], documents="line")
    assert calls == ["good", "the film"]


def test_a_stream_of_the_hub_is_tokenized_once(load, texts, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()

    def write(*documents):
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        (folder / "train.jsonl").write_text(lines)

    def stream(count):
        settings = {"dataset": str(folder), "streaming": True, "max_train_examples": count}
        (shard,) = load({}, **settings).shards
        assert isinstance(shard.tokens, np.memmap)
        return texts(shard)

    write("the film", "the book", "good")
    calls = []
    encode = document_builder.DocumentBuilder._encode
    monkeypatch.setattr(
        document_builder.DocumentBuilder,
        "_encode",
        lambda self, pieces: calls.append(len(pieces)) or encode(self, pieces),
    )
    assert stream(2) == stream(2) == [["the film"], ["the book"]]
    assert stream(None) == stream(None) == [["the film"], ["the book"], ["good"]]
    write("the film", "bad")
    assert stream(2) == [["the film"], ["bad"]]
    assert calls == [2, 3, 2]


@pytest.mark.parametrize("workers", [1, 3])
def test_calls_and_pieces_change_nothing(load, texts, monkeypatch, workers):
    words = ["the", "film", "was", "good", "book"]
    lines = [" ".join(words[i % 5] for i in range(n)) for n in (3, 40, 1, 200, 7)]
    content = f"{lines[0]}\n{lines[1]}\n\n{lines[2]}\n\n{lines[3]}\n{lines[4]}\n"
    monkeypatch.setattr(pieces, "_LONGEST", 50)
    monkeypatch.setattr(document_builder, "_CALL", 120)
    (shard,) = load({"a.txt": content}, workers=workers).shards
    assert texts(shard) == [lines[:2], lines[2:3], lines[3:]]
    assert shard.starts.all()


def test_a_line_of_ten_megabytes(load, tokenizer):
    line = "the film was good " * 560_000
    (shard,) = load({"a.txt": line}).shards
    assert len(shard.tokens) == 4 * 560_000
    assert shard.lines.tolist() == [0, len(shard.tokens)]
    expected = tokenizer.convert_tokens_to_ids(["the", "film", "was", "good"])
    assert (np.asarray(shard.tokens).reshape(-1, 4) == expected).all()


def test_a_long_line_without_spaces_keeps_every_character(load, monkeypatch):
    monkeypatch.setattr(pieces, "_LONGEST", 10)
    (shard,) = load({"a.txt": "好书" * 33}).shards
    assert len(shard.tokens) == 66


def test_words_by_the_spelling_of_tokens(load, tokenizer):
    (shard,) = load({"a.txt": "films, goods\n"}).shards
    pieces = tokenizer.convert_ids_to_tokens(shard.tokens.tolist())
    assert [not piece.startswith("##") for piece in pieces] == shard.starts.tolist()
    assert shard.starts.sum() == 3
    assert len(shard.tokens) > 3


def test_words_of_byte_level_bpe_and_unigram_begin_with_a_space():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "<s>": 4}
    bpe = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    starts = document_builder.word_starts(PreTrainedTokenizerFast(tokenizer_object=bpe))
    assert starts.tolist() == [False, False, True, True, False]
    plain = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    assert document_builder.word_starts(PreTrainedTokenizerFast(tokenizer_object=plain)) is None


SEGMENTED = "我 喜欢 这本 书 films\n好 电影\n\n不好\n"


@pytest.fixture
def chinese(tmp_path):
    """A tokenizer of some Chinese characters."""
    characters = "我喜欢这本书好电影不"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, "film", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_chinese_words_come_from_a_segmenters_file(chinese, tmp_path, suffix):
    name = f"a.txt{suffix}"
    text = "".join(SEGMENTED.split(" "))
    data = DataConfig(train=[str(tmp_path / name)], cache_dir=str(tmp_path / "cache"))
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if suffix else content)
    (tmp_path / f"{name}.seg").write_text(SEGMENTED, encoding="utf-8")
    (shard,) = load_documents(data, "train", chinese, words=".seg").shards
    words = []
    for token, start in zip(shard.tokens, shard.starts, strict=True):
        piece = chinese.convert_ids_to_tokens(int(token)).removeprefix("##")
        words.append(piece) if start else words.append(words.pop() + piece)
    assert words == ["我", "喜欢", "这本", "书", "films", "好", "电影", "不好"]


def test_words_of_other_text(load):
    with pytest.raises(
        InputError, match=r"a\.txt: row 3: the words are .*, from 'm' in place of 's' on"
    ):
        load({"a.txt": "a film\n\nthe books\n", "a.txt.seg": "a film\n\nthe bookm\n"}, words=".seg")
    with pytest.raises(InputError, match=r"a\.txt\.seg: ends before .*a\.txt \(row 3\)"):
        load({"a.txt": "a film\n\nthe books\n", "a.txt.seg": "a film\n"}, words=".seg")
    with pytest.raises(InputError, match=r"b\.txt\.seg: no such file"):
        load({"b.txt": "a film\n"}, words=".seg")


def test_words_of_rows_are_a_line_each(load):
    rows = '{"text": "goodfilm\\nbad"}\n{"text": "the book"}\n'
    (shard,) = load(
        {"a.jsonl": rows, "a.jsonl.seg": "good film bad\nthe book\n"}, words=".seg"
    ).shards
    assert shard.starts.sum() == 5
