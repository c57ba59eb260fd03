"""Entities by hand and by seqeval's own strict report."""

import numpy as np
import pytest
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2, IOBES

from jaxllm.data.tags import retagged
from jaxllm.entities import entities_in, entity_metrics, entity_report

NAMES = {
    "IOB2": ["O", "B-A", "B-B", "I-A", "I-B"],
    "BIOES": [f"{p}-{t}" for p in "BIES" for t in "AB"] + ["O"],
}


def test_entities_by_hand():
    assert entities_in(["B-A", "I-A", "O", "B-A", "B-B"], "IOB2") == [
        ("A", 0, 2),
        ("A", 3, 4),
        ("B", 4, 5),
    ]
    assert entities_in(["O", "I-A", "I-A", "O", "B-A", "I-B"], "IOB2") == [("A", 4, 5)]
    assert entities_in(["S-A", "B-B", "I-B", "E-B", "B-A", "O"], "BIOES") == [
        ("A", 0, 1),
        ("B", 1, 4),
    ]


def test_metrics_by_hand():
    truth = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"]]
    predicted = [["B-A", "I-A", "O", "B-A"], ["O", "O"]]
    values = entity_metrics(truth, predicted, [*NAMES["IOB2"], "B-C"])
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
    assert entity_report(truth, predicted, NAMES["IOB2"]).splitlines() == [
        "type  precision  recall      f1  entities",
        "A        0.5000  0.5000  0.5000         2",
        "B        0.0000  0.0000  0.0000         1",
        "all      0.5000  0.3333  0.4000         3",
    ]


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES"])
def test_metrics_are_those_of_seqeval_in_strict_mode(scheme, rng):
    names = NAMES[scheme]
    draw = [[names[i] for i in rng.integers(0, len(names), 12)] for _ in range(60)]
    truth = [retagged(tags, scheme) for tags in draw]
    predicted = [
        [
            tag if keep else other
            for tag, keep, other in zip(tags, rng.random(12) < 0.8, more, strict=True)
        ]
        for tags, more in zip(truth, draw[::-1], strict=True)
    ]
    values = entity_metrics(truth, predicted, names)
    kind = {"IOB2": IOB2, "BIOES": IOBES}[scheme]
    expected = classification_report(truth, predicted, mode="strict", scheme=kind, output_dict=True)
    micro = expected["micro avg"]
    assert values["precision"] == pytest.approx(micro["precision"])
    assert values["recall"] == pytest.approx(micro["recall"])
    assert values["f1"] == pytest.approx(micro["f1-score"])
    for name in "AB":
        assert values[f"f1/{name}"] == pytest.approx(expected[name]["f1-score"])
    assert 0.1 < values["f1"] < 0.9
    # An entity that begins with I is none here, unlike in seqeval's default mode.
    lenient = classification_report(truth, predicted, output_dict=True)["micro avg"]
    assert lenient["f1-score"] != pytest.approx(values["f1"])


def test_nothing_found_and_nothing_there():
    names = NAMES["IOB2"]
    assert entity_metrics([["B-A"]], [["O"]], names)["f1"] == 0
    nothing = entity_metrics([["O"]], [["O"]], names)
    assert (nothing["f1"], nothing["accuracy"]) == (0, 1)
    assert np.isnan(nothing["f1/A"])
