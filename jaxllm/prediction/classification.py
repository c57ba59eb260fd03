"""Answers rows of text with labels, or with a number: prediction of a sequence classifier."""

from typing import Any

import numpy as np

from jaxllm.metrics.classification import THRESHOLD, probabilities
from jaxllm.prediction.batched import BatchSizes
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.texts import TextPredictor
from jaxllm.pretrained.labels import label_names, problem_type


def classifier(model: SavedModel, batch_sizes: BatchSizes) -> TextPredictor:
    """One label a row: `label`, `score`, `probabilities`; several: `labels` (those above 0.5),
    `probabilities`; regression: `value`.
    """
    problem, names = problem_type(model.config), label_names(model.config)
    return TextPredictor.of(
        model,
        batch_sizes,
        model.forward(lambda output: output.logits),
        lambda logits_C, _: answer(problem, names, logits_C),
    )


def answer(problem_type: str, label_names: list[str], logits_C: np.ndarray) -> dict[str, Any]:
    """The answer to a row as it is written; six significant digits."""
    if problem_type == "regression":
        return {"value": short(logits_C[0])}
    probability_C = probabilities(problem_type, logits_C)
    shares = dict(zip(label_names, map(short, probability_C), strict=True))
    if problem_type == "multi_label_classification":
        over = [n for n, p in zip(label_names, probability_C, strict=True) if p > THRESHOLD]
        return {"labels": over, "probabilities": shares}
    best = label_names[int(np.argmax(probability_C))]
    return {"label": best, "score": shares[best], "probabilities": shares}


def short(value: float) -> float:
    """A number with six significant digits."""
    return float(f"{value:.6g}")
