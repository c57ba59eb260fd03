"""EM and F1 of answers, against values worked out by hand from the scripts' definitions."""

import numpy as np
import pytest

from jaxllm.metrics.answers import (
    SCORINGS,
    answer_metrics,
    best_threshold,
    cmrc_f1,
    cmrc_normalize,
    cmrc_segments,
    squad_f1,
    squad_normalize,
)

SQUAD, CMRC = SCORINGS["squad"], SCORINGS["cmrc"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Normans,", "normans"),
        ("an A-team's the", "ateams"),  # punctuation goes first, so "A-" is no article
        ("theatre of a man", "theatre of man"),
        ("“Rollo”", "“rollo”"),  # only ASCII punctuation goes
        ("the", ""),
    ],
)
def test_squad_normalizes(text, normal):
    assert squad_normalize(text) == normal


@pytest.mark.parametrize(
    ("answer", "predicted", "f1"),
    [
        ("in the 10th and 11th centuries", "10th century", 2 * (1 / 2) * (1 / 5) / (1 / 2 + 1 / 5)),
        ("big big dog", "big dog dog", 2 / 3),  # each word as often as both have it
        ("France", "Germany", 0.0),
        ("", "", 1.0),
        ("", "France", 0.0),
        ("France", "the", 0.0),
    ],
)
def test_squad_f1(answer, predicted, f1):
    assert squad_f1(answer, predicted) == pytest.approx(f1)


def test_the_best_of_several_answers_counts():
    assert SQUAD.best(["Denmark", "Iceland and Norway"], "Norway") == (0.0, pytest.approx(0.5))
    assert SQUAD.best(["Norway", "in Norway"], "the Norway!") == (1.0, 1.0)
    assert SQUAD.best([], "") == (1.0, 1.0)
    assert SQUAD.best(["the"], "") == (1.0, 1.0)  # an answer without a word is none
    assert SQUAD.best([], "Norway") == (0.0, 0.0)
    # evaluate-v1.1.py keeps such an answer, and has no F1 without a word in common.
    assert SQUAD.best(["Norway", "."], "", nullable=False) == (1.0, 0.0)
    assert SQUAD.best(["."], "Norway", nullable=False) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("《战国无双3》由ω-Force开发。", ["战", "国", "无", "双", "3", "由", "ωforce", "开", "发"]),
        ("Hello, World (1,000.5%)", ["hello", ",", "world", "(", "1,000.5", "%", ")"]),
        ("It's 5 p.m.", ["it", "'s", "5", "p.m", "."]),
        ('他说"好"', ["他", "说", "``", "好", "``"]),
        ("1990—1991年", ["1990", "—", "1991", "年"]),
        ("……", ["……"]),
        # As nltk 3.10.4 splits them, by word_tokenize(text, preserve_line=True):
        ("圆锥花gonna序", ["圆", "锥", "花", "gon", "na", "序"]),
        ("―1,000三项", ["―", "1,000", "三", "项"]),
        ("we'll cannot", ["we", "'ll", "can", "not"]),
        ("'x''1901年", ["'", "x", "''", "1901", "年"]),
    ],
)
def test_cmrc_segments(text, segments):
    assert cmrc_segments(text) == segments


def test_cmrc_counts_the_longest_common_run():
    assert cmrc_normalize(" 光荣，和Force。 ") == "光荣和force"
    # 光荣 and 开发 are common, but only one run counts: 2 of 4 predicted, 2 of 5 true.
    assert cmrc_f1("光荣和开发", "光荣开发") == pytest.approx(
        2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5)
    )
    assert cmrc_f1("光荣", "任天堂") == 0
    assert CMRC.best(["消灭司马家族", "灭司马家族"], "《灭司马家族》") == (1.0, 1.0)


def test_metrics_of_squad_1():
    values = answer_metrics(SQUAD, [["Rollo"], ["in France", "France"]], ["rollo", "of France"])
    assert values == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2), "total": 2}


def test_metrics_of_squad_2():
    answers = [["Rollo"], ["France"], [], []]
    predicted = ["Rollo", "in France", "911", "Normandy"]
    odds = np.array([-3.0, 1.0, 2.0, -1.0])
    values = answer_metrics(SQUAD, answers, predicted, odds)
    assert values == {
        "exact_match": 50.0,  # Rollo, and no answer to the third
        "f1": 50.0,
        "total": 4,
        "HasAns_exact_match": 50.0,
        "HasAns_f1": 50.0,
        "HasAns_total": 2,
        "NoAns_exact_match": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        # At -3 Rollo is right and both others are left unanswered rightly.
        "best_exact": 75.0,
        "best_exact_thresh": -3.0,
        "best_f1": 75.0,
        "best_f1_thresh": -3.0,
    }
    assert answer_metrics(SQUAD, answers, predicted, odds, 1.0)["HasAns_f1"] == pytest.approx(
        100 * (1 + 2 / 3) / 2
    )


def test_silence_about_everything_can_be_best():
    score, has_answer = np.array([0.0, 0.0]), np.array([True, False])
    assert best_threshold(score, np.array([1.0, 2.0]), has_answer, np.array([True, True])) == (
        50.0,
        0.0,
    )


def test_every_threshold_is_tried(rng):
    count = 50
    has_answer = rng.random(count) < 0.6
    score = np.where(has_answer, rng.random(count), 0.0)
    odds = rng.normal(size=count)
    by_hand = [
        100 * np.where(odds > threshold, ~has_answer, score).mean() for threshold in np.sort(odds)
    ]
    best, threshold = best_threshold(score, odds, has_answer, np.ones(count, bool))
    assert best == pytest.approx(max(by_hand))
    assert threshold == np.sort(odds)[int(np.argmax(by_hand))]
