"""Examples of causal language models: every token asked for once, and what is seen for it."""

import itertools
import json
import sysconfig

import numpy as np
import pytest

from jaxllm.config.fields import DataConfig, LanguageModelConfig
from jaxllm.data.documents import load_documents
from jaxllm.data.loader import LoaderState, TrainLoader, eval_batches
from jaxllm.data.next_tokens import NextTokenExamples
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.train_tokenizer import train_tokenizer
from jaxllm.errors import InputError

TEXTS = ["ab\n\ncab", "b", "aé  c\n", "abcabcabcabca", "cc"]
ALL = sorted("".join(TEXTS))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A token a character; the end of a text begins one, too."""
    directory = tmp_path_factory.mktemp("characters")
    (directory / "text.txt").write_text("abc é\n\nx\n" * 9)
    train_tokenizer(
        [str(directory / "text.txt")], str(directory / "out"), kind="character", vocab_size=99
    )
    return load_tokenizer(directory / "out")


@pytest.fixture
def examples(tmp_path, tokenizer):
    """Makes the examples of texts; settings of data and, behind `rows`, of lm."""

    def make(texts=TEXTS, rows="documents", length=5, seed=0, **settings):
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        settings = {"train": [str(path)], "cache_dir": str(tmp_path / "cache"), **settings}
        data = DataConfig(max_length=length, pack_window=4, **settings)
        documents = load_documents(data, "train", tokenizer, verbatim=True)
        lm = LanguageModelConfig(rows=rows)
        return NextTokenExamples(documents, data, lm, tokenizer, seed=seed), data

    return make


def asked(batches, weights="label_weights"):
    """(input, label) of all tokens asked for, in pairs."""
    pairs = []
    for batch in batches:
        on = np.asarray(batch[weights]) > 0
        both = (np.asarray(batch[name])[on].tolist() for name in ("input_ids", "labels"))
        pairs += zip(*both, strict=True)
    return pairs


def epoch(source, data, number=0):
    """All batches of an epoch."""
    loader = TrainLoader(source, data=data, batch_size=3, seed=1)
    steps = loader.steps_in_epoch(number)
    return list(itertools.islice(loader.batches(LoaderState(number, 0)), steps))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("rows", ["documents", "joined"])
def test_every_token_and_end_is_asked_for_once(examples, tokenizer, rows, packing):
    source, data = examples(rows=rows, packing=packing, buckets=[5])
    end = tokenizer.eos_token_id
    for number in (0, 1):
        batches = epoch(source, data, number)
        pairs = asked([b.arrays for b in batches])
        labels = [label for _, label in pairs]
        assert labels.count(end) == len(TEXTS)
        text = sorted(tokenizer.decode([x]) for x in labels if x != end)
        assert text == ALL
        inputs = [x for x, _ in pairs]
        assert sorted(inputs) == sorted(labels)  # as many begin as end
        assert sum(b.real_tokens for b in batches) == len(labels)
        for batch in batches:  # nothing is asked for in padding, and no real token is left out
            on = np.asarray(batch.arrays["segment_ids"]) > 0
            np.testing.assert_array_equal(np.asarray(batch.arrays["label_weights"]) > 0, on)


def test_labels_are_the_next_tokens_of_the_same_document(examples, tokenizer):
    source, data = examples()
    found = []
    for batch in epoch(source, data):
        for ids, labels, segments in zip(
            *(np.asarray(batch.arrays[n]) for n in ("input_ids", "labels", "segment_ids")),
            strict=True,
        ):
            for segment in range(1, segments.max() + 1):
                on = segments == segment
                np.testing.assert_array_equal(ids[on][1:], labels[on][:-1])
                found.append(tokenizer.decode([*ids[on][:1], *labels[on]]))
    end = tokenizer.eos_token
    expected = []
    for text in TEXTS:  # cut behind five places; the first token of a part ends the one before
        places = [end, *text, end]
        expected += ["".join(places[i : i + 6]) for i in range(0, len(places) - 1, 5)]
    assert sorted(found) == sorted(expected)


def test_joined_rows_are_one_text_in_another_order_each_epoch(examples, tokenizer):
    source, _ = examples(rows="joined")
    orders, documents = [], []
    for number in range(3):
        part = source.at(number)
        places = np.concatenate(
            [np.arange(a, a + n) for a, n in zip(part.begins, part.lengths, strict=True)]
        )
        tokens, labels, _ = part._at(places)
        np.testing.assert_array_equal(tokens[1:], labels[:-1])
        assert labels[-1] == tokens[0]  # what is left out in front comes last
        assert (part.lengths[:-1] == 5).all()
        orders.append(tokens.tolist())
        documents.append(tuple(part.bounds[:, 0]))
    assert len(set(map(tuple, orders))) == len(set(documents)) == 3
    again, _ = examples(rows="joined")
    assert again.at(1)._at(again.at(1).begins)[0].tolist() == [
        orders[1][i] for i in range(0, len(orders[1]), 5)
    ]


@pytest.mark.parametrize("rows", ["documents", "joined"])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_windows_judge_each_token_once_with_what_is_before_it(examples, tokenizer, rows, stride):
    source, data = examples(rows=rows)
    windows = source.windows(stride)
    batches = [arrays for arrays, _ in eval_batches(windows, data=data, batch_rows=2)]
    end = tokenizer.eos_token_id
    labels = [label for _, label in asked(batches)]
    assert sorted(tokenizer.decode([x]) for x in labels if x != end) == ALL
    assert labels.count(end) == len(TEXTS)
    text = [label for _, label in asked(batches, "text_weights")]
    assert len(text) == windows.text_tokens == len(ALL)
    assert end not in text
    for context, length in zip(windows.context, windows.lengths, strict=True):
        assert context in (0, 5 - stride)
        assert context < length
    if rows == "documents":
        firsts = len(TEXTS)
        assert (windows.context == 0).sum() == (firsts if stride < 5 else len(windows))


def test_bytes_are_those_of_the_text_that_is_used(examples, tmp_path, tokenizer):
    source, _ = examples()
    assert source.text_bytes == sum(len(text.encode()) for text in TEXTS)
    spelled = []
    for shard in source.documents.shards:
        bounds = shard.lines[shard.documents]
        spelled += [tokenizer.decode(shard.tokens[a:b]) for a, b in itertools.pairwise(bounds)]
    assert spelled == TEXTS
    fewer, _ = examples(max_train_examples=3)
    assert fewer.text_bytes == sum(len(text.encode()) for text in TEXTS[:3])
    blank, _ = examples(["a", " ", "", "bé"])  # documents that are not used
    assert blank.text_bytes == 4


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["a\n\nb\n  \n\nc é\n"]),
        ("blank_line", ["a\n", "b\n", "c é\n"]),
        ("line", ["a", "b", "c é"]),
    ],
)
def test_documents_of_a_text_file_keep_their_line_ends(tmp_path, tokenizer, documents, expected):
    (tmp_path / "a.txt").write_text("a\n\nb\n  \n\nc é\n")
    data = DataConfig(
        train=[str(tmp_path / "a.txt")], documents=documents, cache_dir=str(tmp_path / "cache")
    )
    (shard,) = load_documents(data, "train", tokenizer, verbatim=True).shards
    bounds = shard.lines[shard.documents]
    assert [tokenizer.decode(shard.tokens[a:b]) for a, b in itertools.pairwise(bounds)] == expected
    assert shard.bytes.tolist() == [len(text.encode()) for text in expected]
    small = DataConfig(**{**vars(data), "max_row_bytes": 4})
    if documents == "file":
        with pytest.raises(InputError, match=r"a\.txt: row 1: .*4"):
            load_documents(small, "train", tokenizer, verbatim=True)


def test_a_long_text_is_cut_to_tokenize_and_spelled_whole(examples, tokenizer, monkeypatch):
    from jaxllm.data import pieces

    monkeypatch.setattr(pieces, "_LONGEST", 7)
    text = "abc abca  bc\n\ncab " * 5
    source, _ = examples([text, "b"])
    (shard,) = source.documents.shards
    assert tokenizer.decode(shard.tokens[: shard.lines[shard.documents[1]]]) == text
    assert shard.bytes.tolist() == [len(text), 1]


def test_weights_give_each_entry_its_share(tmp_path, tokenizer):
    for name, text in (("a", "a"), ("b", "bbb")):
        lines = "".join(json.dumps({"text": text}) + "\n" for _ in range(12))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    data = DataConfig(
        train=[str(tmp_path / f"{name}.jsonl") for name in "ab"],
        weights=[3.0, 1.0],
        max_length=5,
        cache_dir=str(tmp_path / "cache"),
    )
    documents = load_documents(data, "train", tokenizer, verbatim=True)
    for rows in ("documents", "joined"):
        lm = LanguageModelConfig(rows=rows)
        source = NextTokenExamples(documents, data, lm, tokenizer, seed=0)
        labels = [label for _, label in asked([b.arrays for b in epoch(source, data)])]
        a, b = (tokenizer.convert_tokens_to_ids(x) for x in "ab")
        assert labels.count(a) == 36  # of 48
        assert labels.count(b) == 12


def test_a_tokenizer_without_an_end_of_text(examples, tiny_tokenizer_dir, tokenizer):
    source, data = examples()
    wordpiece = load_tokenizer(tiny_tokenizer_dir)
    with pytest.raises(InputError, match=r"model\.tokenizer: .* no end-of-text token.* eos_token"):
        NextTokenExamples(source.documents, data, LanguageModelConfig(), wordpiece, seed=0)


def test_the_standard_library_is_a_corpus(tmp_path, monkeypatch, tokenizer):
    folder = tmp_path / "python"
    for name in ("b.py", "a/c.py", "site-packages/d.py", "test/e.py", "a/__pycache__/f.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / "latin.py").write_bytes("# coding: latin-1\né\n".encode("latin-1"))
    (folder / "notes.txt").write_text("no code")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    data = DataConfig(corpus="stdlib", dev_fraction=0.3, cache_dir=str(tmp_path / "cache"))
    counts = {}
    for part in ("train", "dev"):
        (shard,) = load_documents(data, part, tokenizer, verbatim=True).shards
        counts[part] = shard.bytes.tolist()
    texts = ("# b.py\n", "# a/c.py\n", "# coding: latin-1\né\n")
    assert sorted(counts["train"] + counts["dev"]) == sorted(len(text.encode()) for text in texts)
    assert len(counts["dev"]) == 1
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"data\.corpus: found stdlib, but .*nothing holds no"):
        load_documents(data, "train", tokenizer, verbatim=True)
