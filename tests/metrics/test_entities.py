"""Entities and plain tags by hand, by seqeval's own strict report and by scikit-learn's."""

import numpy as np
import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOB2, IOBES, Tokens
from sklearn import metrics as sk

from jaxllm.data.tags import Scheme, scheme_of
from jaxllm.metrics.entities import entity_metrics, entity_report
from jaxllm.metrics.tags import tag_metrics, tag_report

SEQEVAL = {"BI": IOB2, "BIES": IOBES, "BILU": BILOU}
IOB = Scheme("IOB2", "BI")


def names_of(letters):
    return ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("A", "B-x"))]


def random_tags(names, rng, sentences=60, words=12):
    return [[names[i] for i in rng.integers(0, len(names), words)] for _ in range(sentences)]


def test_entities_by_hand():
    assert IOB.entities(["B-A", "I-A", "O", "B-A", "B-B"]) == [
        ("A", 0, 2),
        ("A", 3, 4),
        ("B", 4, 5),
    ]
    assert IOB.entities(["O", "I-A", "I-A", "O", "B-A", "I-B"]) == [("A", 4, 5)]
    assert Scheme("BIOES", "BIES").entities(["S-A", "B-B", "I-B", "E-B", "B-A", "O"]) == [
        ("A", 0, 1),
        ("B", 1, 4),
    ]


SCHEMES = {  # tags of a sentence, its entities
    "BILOU": ("U-P U-P O B-P I-P L-P", [("P", 0, 1), ("P", 1, 2), ("P", 3, 6)]),
    "BMES": ("S-P S-P O B-P M-P E-P", [("P", 0, 1), ("P", 1, 2), ("P", 3, 6)]),
    "BMEWO": ("W-P W-P O B-P M-P E-P", [("P", 0, 1), ("P", 1, 2), ("P", 3, 6)]),
    "underscore": ("B_P I_P O B_Q", [("P", 0, 2), ("Q", 3, 4)]),
    "bare": ("O B I B O", [("entity", 1, 3), ("entity", 3, 4)]),
    "words": ("B M E S S", [("entity", 0, 3), ("entity", 3, 4), ("entity", 4, 5)]),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_spellings_of_the_schemes(name):
    """Found: seqeval's default mode makes one entity of U-P U-P."""
    tags, expected = SCHEMES[name]
    scheme = scheme_of(tags.split(), "auto", "here")
    assert scheme.entities(tags.split()) == expected
    assert scheme.retagged(tags.split()) == tags.split()
    names = scheme.names(tags.split())
    assert set(tags.split()) <= set(names)
    assert ("O" in names) == ("O" in tags)
    assert scheme_of(names, "auto", "here") == scheme


def test_a_run_of_bare_types_is_an_entity_where_that_is_said():
    tags = ["O", "PER", "PER", "LOC", "O", "LOC"]
    scheme = scheme_of(tags, "entities", "here")
    assert scheme.entities(tags) == [("PER", 1, 3), ("LOC", 3, 4), ("LOC", 5, 6)]
    assert scheme.names(tags) == ["O", "LOC", "PER"]
    assert scheme.retagged(tags) == tags


def test_letters_that_the_data_lack_are_those_of_their_spelling():
    def names(*tags):
        return scheme_of(tags, "auto", "here").names(tags)

    assert names("O", "B-x", "I-a") == ["O", "B-a", "B-x", "I-a", "I-x"]
    assert names("O", "S-a") == ["O", "B-a", "E-a", "I-a", "S-a"]
    assert names("O", "U-a") == names("O", "L-a") == ["O", "B-a", "I-a", "L-a", "U-a"]
    assert names("O", "M-a", "E-a") == ["O", "B-a", "E-a", "M-a", "S-a"]


@pytest.mark.parametrize("letters", SEQEVAL)
def test_metrics_are_those_of_seqeval_in_strict_mode(letters, rng):
    names = names_of(letters)
    scheme = scheme_of(names, "auto", "here")
    for tags in random_tags(names, rng, sentences=500, words=7):
        found = [(x.tag, x.start, x.end) for x in Tokens(tags, SEQEVAL[letters]).entities]
        assert scheme.entities(tags) == found
    draw = random_tags(names, rng)
    truth = [scheme.retagged(tags) for tags in draw]
    predicted = [
        [
            tag if keep else other
            for tag, keep, other in zip(tags, rng.random(12) < 0.8, more, strict=True)
        ]
        for tags, more in zip(truth, draw[::-1], strict=True)
    ]
    values = entity_metrics(truth, predicted, scheme, names)
    expected = classification_report(
        truth, predicted, mode="strict", scheme=SEQEVAL[letters], output_dict=True
    )
    micro = expected["micro avg"]
    assert values["precision"] == pytest.approx(micro["precision"])
    assert values["recall"] == pytest.approx(micro["recall"])
    assert values["f1"] == pytest.approx(micro["f1-score"])
    for kind in ("A", "B-x"):
        assert values[f"f1/{kind}"] == pytest.approx(expected[kind]["f1-score"])
    assert 0.1 < values["f1"] < 0.9
    if letters == "BILU":  # seqeval's default mode warns of them, and does not tell U from I
        return
    # Tags out of order are no entities here, unlike in seqeval's default mode.
    lenient = classification_report(truth, predicted, output_dict=True)["micro avg"]
    assert lenient["f1-score"] != pytest.approx(values["f1"])


def test_metrics_by_hand():
    truth = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"]]
    predicted = [["B-A", "I-A", "O", "B-A"], ["O", "O"]]
    values = entity_metrics(truth, predicted, IOB, ["O", "B-A", "I-A", "B-B", "I-B", "B-C"])
    assert values == pytest.approx(
        {
            "precision": 1 / 2,
            "recall": 1 / 3,
            "f1": 0.4,
            "accuracy": 4 / 6,
            "f1/A": 0.5,
            "f1/B": 0.0,
            "f1/C": float("nan"),
        },
        nan_ok=True,
    )
    assert entity_report(truth, predicted, IOB).splitlines() == [
        "type  precision  recall      f1  entities",
        "A        0.5000  0.5000  0.5000         2",
        "B        0.0000  0.0000  0.0000         1",
        "all      0.5000  0.3333  0.4000         3",
    ]


def test_nothing_found_and_nothing_there():
    names = ["O", "B-A", "I-A"]
    assert entity_metrics([["B-A"]], [["O"]], IOB, names)["f1"] == 0
    nothing = entity_metrics([["O"]], [["O"]], IOB, names)
    assert (nothing["f1"], nothing["accuracy"]) == (0, 1)
    assert np.isnan(nothing["f1/A"])


def test_plain_tags_by_hand():
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, -1])  # -1: none
    values = tag_metrics(truth, predicted, ["DET", "NOUN", "VERB"])
    assert values == pytest.approx(
        {
            "accuracy": 0.5,
            "f1_macro": (2 / 3 + 0.5) / 2,
            "precision_macro": 0.75,
            "recall_macro": 0.5,
            "f1/DET": 2 / 3,
            "f1/NOUN": 0.5,
            "f1/VERB": float("nan"),
        },
        nan_ok=True,
    )
    assert tag_report(truth, predicted, ["DET", "NOUN", "VERB"]).splitlines() == [
        "tag   precision  recall      f1  words",
        "DET      1.0000  0.5000  0.6667      2",
        "NOUN     0.5000  0.5000  0.5000      2",
    ]


def test_metrics_of_plain_tags_are_those_of_scikit_learn(rng):
    names = [f"T{i}" for i in range(6)]
    truth, predicted = rng.integers(0, 5, 300), rng.integers(1, 6, 300)
    predicted = np.where(rng.random(300) < 0.6, truth, predicted)
    values = tag_metrics(truth, predicted, names)
    expected = sk.classification_report(
        truth, predicted, target_names=names, output_dict=True, zero_division=0
    )
    assert values["accuracy"] == pytest.approx(expected["accuracy"])
    macro = expected["macro avg"]
    assert values["precision_macro"] == pytest.approx(macro["precision"])
    assert values["recall_macro"] == pytest.approx(macro["recall"])
    assert values["f1_macro"] == pytest.approx(macro["f1-score"])
    for name in names:
        assert values[f"f1/{name}"] == pytest.approx(expected[name]["f1-score"])
    assert 0.3 < values["f1_macro"] < 0.9
