"""Running (sum, weight) sums, and the metrics of classification and regression.

Counts and curves come from scikit-learn. What is undefined is NaN with a note in the report
(`metric_report`), never a warning and never a silent zero, except where scikit-learn's zero is the
field's convention (said in `classification_metrics`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.errors import InputError

NAN = float("nan")
THRESHOLD = 0.5  # a label of a multi-label row is predicted when its probability is above this


class Sums:
    """Running totals of metrics that arrive as (sum, weight).

    Totals are Python floats (64 bits), so that a long run loses nothing to float32 rounding, and
    the mean does not depend on how the examples were cut into batches.
    """

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float, float]] = {}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds one step's `{name: (sum, weight)}`; scalars or 0-d arrays."""
        for name, (value, weight) in metrics.items():
            total, total_weight = self._totals.get(name, (0.0, 0.0))
            self._totals[name] = (total + float(value), total_weight + float(weight))

    def weight(self, name: str) -> float:
        """The total weight of one metric, 0 when it never arrived."""
        return self._totals.get(name, (0.0, 0.0))[1]

    def means(self) -> dict[str, float]:
        """`{name: sum / weight}`; NaN where the weight is 0."""
        return {n: value / w if w else NAN for n, (value, w) in self._totals.items()}

    def clear(self) -> None:
        """Forgets everything added so far."""
        self._totals.clear()


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    shifted = np.asarray(logits_NC, np.float64)
    exp = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function in float64, without overflow for large negative logits."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64)))


def probabilities(problem_type: str, logits_NC: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] in float64: softmax for one label a row, sigmoid for several."""
    if problem_type == "multi_label_classification":
        return sigmoid(logits_NC)
    return softmax(logits_NC)


def classification_metrics(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> dict[str, float]:
    """All metrics of a data set, as flat names.

    Args:
        problem_type: as in transformers: `single_label_classification`,
            `multi_label_classification` or `regression`.
        logits: [N, C]; regression [N, 1] or [N].
        labels: int [N]; multi-label 0/1 [N, C]; regression float [N].
        label_names: the C names, in the order of the ids; not used for regression.

    Returns:
        Classification: `accuracy` (multi-label: the share of rows with every label right), `f1`
        (two classes: of class 1; else `f1_macro`), `f1_macro`, `f1_micro`, `precision_macro`,
        `recall_macro`, `roc_auc` (two classes: of class 1; else the mean over classes, each
        against the rest), `f1/<label>`; one label a row also `matthews`.
        Regression: `pearson`, `spearman`, `mse`, `mae`.

        scikit-learn's conventions hold: precision, recall and F1 are 0 where nothing was
        predicted; single-label macro averages run over the classes that occur in the labels or
        the predictions, multi-label ones over all; Matthews is 0 when one class only was
        predicted. NaN: F1 of a class that does not occur at all (single-label), ROC-AUC when a
        class has no examples or no counter-examples, Matthews when the labels are all of one
        class, correlations with a constant.

    Raises:
        InputError: no rows, or logits that are not finite.
        ValueError: shapes that do not fit.
    """
    logits, labels = checked(problem_type, logits, labels, len(label_names))
    if problem_type == "regression":
        values = logits[:, 0].astype(np.float64)
        error = values - labels
        return {
            "pearson": pearson(values, labels),
            "spearman": spearman(values, labels),
            "mse": float(np.mean(error**2)),
            "mae": float(np.mean(np.abs(error))),
        }
    from sklearn import metrics as sk

    probability = probabilities(problem_type, logits)
    predicted = predictions(problem_type, logits)
    multi = problem_type == "multi_label_classification"
    classes = len(label_names)
    present = range(classes) if multi else np.union1d(labels, predicted)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=list(present), average=None, zero_division=0
    )
    per_class = dict.fromkeys(range(classes), NAN) | dict(zip(map(int, present), f1, strict=True))
    binary = classes == 2 and not multi
    result = {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "f1": float(per_class[1] if binary else f1.mean()),
        "f1_macro": float(f1.mean()),
        "f1_micro": float(sk.f1_score(labels, predicted, average="micro", zero_division=0)),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
    }
    if not multi:
        one_class = len(np.unique(labels)) < 2
        result["matthews"] = NAN if one_class else float(sk.matthews_corrcoef(labels, predicted))
    truth = labels if multi else labels[:, None] == np.arange(classes)
    scored = [1] if binary else range(classes)
    result["roc_auc"] = float(np.mean([roc_auc(truth[:, c], probability[:, c]) for c in scored]))
    return result | {f"f1/{name}": float(per_class[c]) for c, name in enumerate(label_names)}


def predictions(problem_type: str, logits_NC: np.ndarray) -> np.ndarray:
    """Predicted class ids [N], or 0/1 [N, C] for multi-label; values [N] for regression."""
    if problem_type == "regression":
        return np.asarray(logits_NC)[:, 0]
    if problem_type == "multi_label_classification":
        return (sigmoid(logits_NC) > THRESHOLD).astype(np.int32)
    return np.argmax(logits_NC, axis=-1)


def roc_auc(truth_N: np.ndarray, score_N: np.ndarray) -> float:
    """Area under the ROC curve of one class; NaN when truth is all true or all false."""
    truth = np.asarray(truth_N, bool)
    if truth.all() or not truth.any():
        return NAN
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score_N))


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Pearson's correlation; NaN when either side is constant."""
    x, y = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
    if np.all(x == x[0]) or np.all(y == y[0]):
        return NAN
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1.0, 1.0))


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank."""
    return pearson(_ranks(x_N), _ranks(y_N))


def _ranks(x_N: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def checked(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(logits [N, C], labels), or an error as `classification_metrics` says."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    columns = 1 if problem_type == "regression" else classes
    logits = logits.reshape(-1, 1) if logits.ndim == 1 else logits
    multi = problem_type == "multi_label_classification"
    wanted = (len(logits), columns) if multi else (len(logits),)
    if logits.ndim != 2 or logits.shape[1] != columns or labels.shape != wanted:
        raise ValueError(
            f"{problem_type} with {classes} label names: "
            f"logits {logits.shape} and labels {labels.shape} do not fit"
        )
    if not len(logits):
        raise InputError("evaluation: the data holds no rows; give a file with at least one")
    check_finite(logits, "rows")
    return logits, labels


def check_finite(logits_NC: np.ndarray, unit: str) -> None:
    """Raises InputError if a model has given NaN or infinity for one of N rows, words or tokens."""
    bad = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(bad):
        raise InputError(
            f"evaluation: the logits of {len(bad)} of {len(logits_NC)} {unit} are not finite (the "
            f"first: {unit[:-1]} {bad[0] + 1} of those evaluated); the model's parameters have "
            "diverged: lower optimizer.learning_rate, or load another model"
        )
