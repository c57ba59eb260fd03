"""A share of the training rows as the dev part: which rows, for every task, and always the same."""

import json
from collections import Counter

import numpy as np
import pytest

from jaxllm.config import reading
from jaxllm.config.fields import Config, ContrastiveConfig, DataConfig, ModelConfig, QAConfig
from jaxllm.data.corpus import load_examples
from jaxllm.data.documents import load_documents
from jaxllm.data.holdout import chosen
from jaxllm.data.pairs import load_pairs
from jaxllm.data.questions import load_questions
from jaxllm.data.sentences import load_sentences
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.window_cache import load_windows
from jaxllm.errors import InputError
from jaxllm.tasks.registry import TASKS

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def data(tmp_path):
    """A configuration for files of the given contents."""

    def make(*contents, name="{}.jsonl", **settings):
        files = []
        for i, content in enumerate(contents):
            path = tmp_path / name.format(i)
            path.write_text(content if isinstance(content, str) else lines(content))
            files.append(str(path))
        settings = {"dev_fraction": 0.2, "cache_dir": str(tmp_path / "cache"), **settings}
        return DataConfig(train=files, max_length=24, **settings)

    return make


def lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


def test_each_stratum_gives_its_share_and_its_rows_do_not_depend_on_order(rng):
    sizes = [50, 33, 7, 2, 1, 1, 1]
    strata = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    hashes = rng.integers(1, 2**63, len(strata), dtype=np.uint64)
    held = chosen(hashes, strata, 0.1, seed=0)
    assert len(held) == round(0.1 * len(hashes))
    counts = [int(np.isin(hashes[strata == i], held).sum()) for i in range(len(sizes))]
    assert all(abs(count - 0.1 * size) < 1 for count, size in zip(counts, sizes, strict=True))
    assert counts[4:] == [0, 0, 0]
    mixed = rng.permutation(len(hashes))
    assert chosen(hashes[mixed], strata[mixed], 0.1, seed=0).tolist() == held.tolist()
    others = chosen(hashes, strata, 0.1, seed=1)
    assert len(others) == len(held)
    assert len(set(others.tolist()) & set(held.tolist())) < len(held) // 2
    # With a row more, at most one row goes from one part to the other.
    grown = chosen(np.append(hashes, np.uint64(5)), np.append(strata, strata[:1]), 0.1, seed=0)
    assert len(set(held.tolist()) - set(grown.tolist())) <= 1


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_both_parts_have_a_row(fraction):
    hashes = np.arange(1, 4, dtype=np.uint64)
    held = chosen(hashes, np.zeros(3, np.uint64), fraction, seed=0)
    assert 1 <= len(held) <= 2
    with pytest.raises(InputError, match=r"data\.dev_fraction: found .*1 different rows"):
        chosen(hashes[[0, 0]], np.zeros(2, np.uint64), fraction, seed=0)


def test_classes_are_shared_out_and_equal_texts_stay_together(data, tokenizer):
    rows = [{"text": f"film {i % 40}", "label": "ab"[i % 40 > 9]} for i in range(80)]
    made = data(rows[:50], rows[50:], max_train_examples=60)

    def load(split, labels=None, **settings):
        one = DataConfig(**{**vars(made), **settings})
        return load_examples(one, split, tokenizer, problem_type=SINGLE, labels=labels)

    train, names = load("train")
    dev, _ = load("dev", names)
    assert len(dev) == 16
    assert Counter(dev.labels.tolist()) == {0: 4, 1: 12}
    assert len(train) == 60  # the limit is one of the training part
    assert not set(dev.hashes.tolist()) & set(train.hashes.tolist())
    whole = load("train", dev_fraction=0.0, max_train_examples=None)[0]
    numbers = {int(h): set() for h in whole.hashes}
    for content, number in zip(whole.hashes, whole.rows, strict=True):
        numbers[int(content)].add(int(number))
    assert all(n in numbers[int(h)] for h, n in zip(dev.hashes, dev.rows, strict=True))
    again, _ = load("dev", names, dev_seed=0, max_train_examples=None)  # of another run
    assert again.hashes.tolist() == dev.hashes.tolist()
    other, _ = load("dev", names, dev_seed=1)
    assert other.hashes.tolist() != dev.hashes.tolist()


def test_labels_that_are_held_out_are_known_in_training(data, tokenizer):
    rows = [{"text": f"film {i}", "label": [f"l{i}"]} for i in range(10)]
    made = data(rows)
    train, names = load_examples(made, "train", tokenizer, problem_type=MULTI, labels=None)
    assert names == sorted(f"l{i}" for i in range(10))
    dev, _ = load_examples(made, "dev", tokenizer, problem_type=MULTI, labels=names)
    assert (len(train), len(dev)) == (8, 2)
    assert train.report.read == 8
    assert (train.labels.sum(0) + dev.labels.sum(0)).tolist() == [1] * 10


def test_bad_rows_are_told_once(data, tokenizer):
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(10)]
    rows += [{"text": "", "label": 0}, {"text": "\ud83d", "label": 0}, {"text": "x"}]
    made = data(rows, on_bad_row="drop")
    train, names = load_examples(made, "train", tokenizer, problem_type=SINGLE, labels=None)
    dev, _ = load_examples(made, "dev", tokenizer, problem_type=SINGLE, labels=names)
    assert sum(train.report.dropped.values()) == 3
    assert dev.report.dropped == {}
    assert (len(train), len(dev)) == (8, 2)


def test_sentences_are_held_out_of_all_files(data, tokenizer):
    text = "".join(f"film O\nw{i} B-{'XY'[i == 3]}\n\n" for i in range(10))
    made = data(text, text.replace("w", "v"), name="{}.conll")
    train, names = load_sentences(made, "train", tokenizer, None)
    dev, _ = load_sentences(made, "dev", tokenizer, names)
    assert sorted(names) == ["B-X", "B-Y", "I-X", "I-Y", "O"]
    assert (len(train), len(dev)) == (16, 4)
    words = {tuple(part.words(i)) for part in (train, dev) for i in range(len(part))}
    assert len(words) == 20


def test_questions_on_one_context_are_in_one_part(data, tokenizer):
    def paragraph(i):
        asked = [{"question": f"what {j}", "answers": [], "id": f"{i}-{j}"} for j in range(i + 1)]
        return {"context": f"the film {i} was good", "qas": asked}

    content = json.dumps([*map(paragraph, range(10)), paragraph(9) | {"qas": []}])
    made = data(content, name="{}.json", dev_fraction=0.3)
    qa = QAConfig(max_question_length=4, doc_stride=2)
    parts = [load_windows(made, qa, split, tokenizer)[1] for split in ("train", "dev")]
    contexts = [{q.id.split("-")[0] for q in part.questions} for part in parts]
    assert len(contexts[1]) == 3
    assert not contexts[0] & contexts[1]
    assert sorted(q.id for part in parts for q in part.questions) == sorted(
        f"{i}-{j}" for i in range(10) for j in range(i + 1)
    )


def test_pairs_with_one_anchor_are_in_one_part(data, tokenizer):
    rows = [{"text": f"film {i % 10}", "b": f"book {i}", "c": "bad"} for i in range(30)]
    rows[4]["c"] = ""
    more = {"text_pair": "b", "on_bad_row": "drop", "max_dev_examples": 5}
    made = data(rows, **more)
    train, dev = (
        load_pairs(made, ContrastiveConfig("c"), split, tokenizer) for split in ("train", "dev")
    )
    anchors = [{(n - 1) % 10 for n in part.rows.tolist()} for part in (train, dev)]
    assert not anchors[0] & anchors[1]
    assert len(anchors[0]) == 8
    assert len(train) == 24 - (4 in anchors[0])  # a row of it has no negative
    assert len(dev) == 5
    assert train.report.read == 24


def test_choices_are_held_out(data, tokenizer):
    rows = [{"text": f"film {i}", "c": ["good", "bad"], "label": i % 2} for i in range(10)]
    made = data(rows, choices=["c"])
    parts = [load_questions(made, split, tokenizer) for split in ("train", "dev")]
    assert sorted(n for part in parts for n in part.rows.tolist()) == list(range(1, 11))
    assert sorted(parts[1].labels.tolist()) == [0, 1]


@pytest.mark.parametrize("words", [None, ".seg"])
def test_documents_are_held_out(data, tokenizer, words, tmp_path):
    texts = ["\n\n".join(f"film {i} {j}\nbook" for j in range(10)) + "\n" for i in range(2)]
    texts.append("\n\n".join(["\u200b", "\n"]) + "good\n")
    made = data(*texts, name="{}.txt")
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt.seg").write_text(text)
    train, dev = (load_documents(made, split, tokenizer, words=words) for split in ("train", "dev"))
    assert len(dev.hashes) == 4
    assert len(train.hashes) + len(dev.hashes) == 21
    assert not set(train.hashes.tolist()) & set(dev.hashes.tolist())
    assert train.corpora.tolist() == [0, 1, 2]
    assert set(dev.corpora.tolist()) <= {0, 1, 2}


def test_rows_of_a_hub_data_set_are_held_out(tokenizer, tmp_path):
    import datasets

    rows = [{"text": f"film {i}", "label": i % 2} for i in range(10)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "set" / "train.parquet"))
    made = DataConfig(
        dataset=str(tmp_path / "set"), dev_split="", dev_fraction=0.2, cache_dir=str(tmp_path / "c")
    )
    assert made.has_dev
    train, names = load_examples(made, "train", tokenizer, problem_type=SINGLE, labels=None)
    dev, _ = load_examples(made, "dev", tokenizer, problem_type=SINGLE, labels=names)
    assert (len(train), sorted(dev.labels.tolist())) == (8, [0, 1])


def test_a_run_has_a_dev_part(data, tiny_bert_dir, caplog):
    rows = [{"text": f"film {i % 20}", "label": i % 2} for i in range(40)]
    made = Config(model=ModelConfig(path=str(tiny_bert_dir)), data=data(rows))
    task = TASKS["sequence-classification"].prepare(made, load_tokenizer(tiny_bert_dir))
    assert len(task.train) == 32
    assert task.evaluator is not None
    assert "have the text of one in data.train" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.dev=[b]"], r"data\.dev_fraction: found 0\.1 beside data\.dev=\['b'\]"),
        (["--data.streaming=true"], r"beside data\.streaming=True.*all rows are needed"),
        (["--data.dev_fraction=1"], r"data\.dev_fraction: found 1\.0, expected .* below 1"),
        (["--data.dev_fraction=-0.1"], r"data\.dev_fraction: found -0\.1, expected at least 0"),
        (["--data.dev_seed=-1"], r"data\.dev_seed: found -1"),
        (
            ["--data.train=[]", "--data.dataset=a/b"],
            r"beside data\.dev_split=validation.*set data\.dev_split: \"\"",
        ),
    ],
)
def test_a_fraction_has_no_other_dev_part_beside_it(options, message):
    own = ["--data.train=[a]", "--model.path=m", "--data.dev_fraction=0.1"]
    with pytest.raises(InputError, match=message):
        reading.load([*own, *options])
    assert reading.load(own).data.has_dev
