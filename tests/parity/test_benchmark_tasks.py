"""The PyTorch side of benchmarks.tasks: the same labels and the same scores as jaxllm's."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jaxllm.config.fields import DataConfig, QAConfig
from jaxllm.data.sentences import load_sentences
from jaxllm.data.tags import Scheme
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.window_cache import load_windows
from jaxllm.metrics.answers import SCORINGS, answer_metrics
from jaxllm.metrics.entities import entity_metrics
from jaxllm.prediction.answers import best_answers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the installed package

from benchmarks.recipe import Job, Recipe  # noqa: E402

pytestmark = pytest.mark.parity
pytest.importorskip("torch", reason="the baseline needs PyTorch: install the parity extra")

NAMES = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
TEXT = "the film was a good story of love and the acting was poor but we liked it all the time "


def job(tiny_bert_dir: Path, path: Path, **more) -> Job:
    return Job("run", str(tiny_bert_dir), str(path), str(path), directory="", **more)


def test_words_have_the_same_labels_and_scores(tiny_bert_dir, tmp_path, rng):
    from benchmarks.torch_tasks import Words

    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        for _ in range(60):
            words = [str(word) for word in rng.choice(TEXT.split(), rng.integers(1, 12))]
            tags = [["O"] if rng.random() < 0.4 else [f"B-{t}", f"I-{t}"] for t in ("PER", "LOC")]
            flat = [tag for _ in words for tag in tags[rng.integers(2)]][: len(words)]
            flat = [
                t if t[0] != "I" or (i and flat[i - 1][2:] == t[2:]) else "O"
                for i, t in enumerate(flat)
            ]
            file.write(json.dumps({"text": words, "label": flat}) + "\n")
    length = 12  # some sentences are cut
    side = Words(job(tiny_bert_dir, path, labels=NAMES, recipe=Recipe(max_length=length)))
    features = side.features(str(path))
    data = DataConfig(
        train=[str(path)], labels=NAMES, max_length=length, cache_dir=str(tmp_path / "cache")
    )
    ours, _ = load_sentences(data, "train", load_tokenizer(tiny_bert_dir), NAMES)
    assert len(ours) == len(features) == 60
    for i, (begin, end) in enumerate(pairwise(ours.offsets)):
        assert features[i]["input_ids"] == ours.tokens[begin:end].tolist()
        assert np.maximum(features[i]["labels"], -1).tolist() == ours.labels[begin:end].tolist()
    outputs = [rng.normal(size=(length, len(NAMES))) for _ in features]
    predicted, truth = [], []
    for i, logits in enumerate(outputs):
        words = slice(*ours.word_offsets[i : i + 2])
        at = ours.word_tokens[words]
        predicted.append(["O" if t < 0 else NAMES[logits[t].argmax()] for t in at])
        truth.append([NAMES[k] for k in ours.word_labels[words]])
    score = side.score(outputs, features, str(path))
    assert 0 < score < 1
    assert score == pytest.approx(
        entity_metrics(truth, predicted, Scheme("IOB2", "BI"), NAMES)["f1"]
    )


def test_questions_have_the_same_windows_and_scores(tiny_bert_dir, tmp_path, rng):
    from benchmarks.torch_tasks import Questions

    qas = []
    context = TEXT * 14
    for number in range(24):
        begin = int(rng.integers(len(context) // 5)) * 5
        begin = context.index(" ", begin % (len(context) - 100)) + 1
        answer = " ".join(context[begin:].split()[:3])
        row = {"id": str(number), "question": "what was it?", "is_impossible": number % 3 == 0}
        qas.append(row | {"answers": [{"text": answer, "answer_start": begin}]})
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    recipe = Recipe(max_length=220)
    side = Questions(job(tiny_bert_dir, path, labels=[], recipe=recipe))
    features = side.features(str(path))
    data, qa = DataConfig(train=[str(path)], max_length=220), QAConfig(max_question_length=16)
    windows, asked = load_windows(data, qa, "train", load_tokenizer(tiny_bert_dir))
    assert len(windows) == len(features) > len(qas)
    bounds = list(pairwise(windows.offsets))
    for row, (begin, end), label in zip(features, bounds, windows.labels, strict=True):
        assert row["input_ids"] == windows.tokens[begin:end].tolist()
        assert row["token_type_ids"] == windows.type_ids[begin:end].tolist()
        assert (row["start_positions"], row["end_positions"]) == tuple(label)
    assert 0 < np.mean(windows.labels[:, 0] > 0) < 1
    outputs = [3 * rng.normal(size=(220, 2)).astype(np.float32) for _ in features]
    for row, scores in zip(features, outputs, strict=True):  # else chance finds no answer
        scores[row["start_positions"], 0] += 8
        scores[row["end_positions"], 1] += 8
    scores_T2 = np.concatenate([s[: e - b] for s, (b, e) in zip(outputs, bounds, strict=True)])
    found = best_answers(windows, asked, *scores_T2.T, qa, nullable=True)
    expected = answer_metrics(
        SCORINGS["squad"],
        [[text for text, _ in question.answers] for question in asked.questions],
        [answers.best.text for answers in found],
        np.array([answers.null_odds for answers in found]),
    )
    assert 10 < expected["f1"] < expected["best_f1"] < 100
    assert side.score(outputs, features, str(path)) == pytest.approx(expected["best_f1"])
