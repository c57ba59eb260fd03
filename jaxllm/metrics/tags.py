"""How well plain tags of words were predicted: accuracy; precision, recall and F1 of each tag."""

from collections.abc import Sequence

import numpy as np

from jaxllm.metrics.classification import NAN
from jaxllm.metrics.report import table


def tag_metrics(
    truth_W: np.ndarray, predicted_W: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """`accuracy`, `f1_macro`, `precision_macro`, `recall_macro` and `f1/<tag>`, as scikit-learn's.

    Args:
        truth_W, predicted_W: ids of the tags of words; -1 = none was predicted, which is wrong.
        names: the tags in the order of their ids.

    Macro averages run over the tags that are in the truth or were predicted, which have 0 where
    nothing was predicted or nothing was there; F1 of the others is NaN.
    """
    scores = _scores(truth_W, predicted_W, names)
    shares = np.array([score[:3] for score in scores.values()])
    precision, recall, f1 = map(float, shares.mean(0))
    values = {"accuracy": float(np.mean(truth_W == predicted_W)), "f1_macro": f1}
    values |= {"precision_macro": precision, "recall_macro": recall}
    return values | {f"f1/{name}": scores[name][2] if name in scores else NAN for name in names}


def tag_report(truth_W: np.ndarray, predicted_W: np.ndarray, names: Sequence[str]) -> str:
    """A table of precision, recall and F1, one line a tag; ends with a newline."""
    rows = [["tag", "precision", "recall", "f1", "words"]]
    for name, (*shares, count) in _scores(truth_W, predicted_W, names).items():
        rows.append([name, *(f"{share:.4f}" for share in shares), str(count)])
    return table(rows) + "\n"


def _scores(
    truth_W: np.ndarray, predicted_W: np.ndarray, names: Sequence[str]
) -> dict[str, tuple[float, float, float, int]]:
    """(precision, recall, F1, words that have it) of each tag in the truth or predicted."""
    from sklearn.metrics import precision_recall_fscore_support

    present = np.union1d(truth_W, predicted_W[predicted_W >= 0])
    columns = precision_recall_fscore_support(
        truth_W, predicted_W, labels=present, average=None, zero_division=0
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {names[i]: row for i, row in zip(present, rows, strict=True)}
