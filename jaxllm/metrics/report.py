"""The report of an evaluation to read: metrics, tables by class, and what could not be defined."""

from collections.abc import Sequence
from unicodedata import east_asian_width

import numpy as np

from jaxllm.metrics.classification import checked, classification_metrics, predictions


def undefined_notes(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> list[str]:
    """One sentence for each metric that `classification_metrics` could not define, and why."""
    logits, labels = checked(problem_type, logits, labels, len(label_names))
    if problem_type == "regression":
        sides = {"labels": labels, "predictions": logits[:, 0]}
        return [
            f"pearson and spearman are undefined: the {side} are all {values[0]:g}"
            for side, values in sides.items()
            if np.all(values == values[0])
        ]
    multi = problem_type == "multi_label_classification"
    truth = labels if multi else labels[:, None] == np.arange(len(label_names))
    support = np.asarray(truth, np.int64).sum(axis=0)
    predicted = predictions(problem_type, logits)
    notes = []
    if not multi and (support == len(labels)).any():
        only = label_names[int(labels[0])]
        notes.append(f"matthews and roc_auc are undefined: every row has the label {only!r}")
    else:
        for name, count in zip(label_names, support, strict=True):
            if count in (0, len(labels)):
                which = "no row" if count == 0 else "every row"
                notes.append(f"roc_auc is undefined: {which} has the label {name!r}")
    for c, name in enumerate(label_names):
        if support[c] == 0 and not (predicted[:, c].any() if multi else (predicted == c).any()):
            value = "counts as 0" if multi else "is undefined and left out of the averages"
            notes.append(f"f1/{name} {value}: neither a row nor a prediction has the label")
    return notes


def one_prediction(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> str | None:
    """A sentence where all rows are predicted alike, though their labels differ; else None."""
    logits, labels = checked(problem_type, logits, labels, len(label_names))
    predicted = predictions(problem_type, logits)
    if problem_type == "single_label_classification":
        return one_class(predicted, labels, label_names, "row")
    if not (predicted == predicted[0]).all() or (labels == labels[0]).all():
        return None
    if problem_type == "regression":
        return f"the model predicts {predicted[0]:g} for every row, though the labels differ"
    return f"the model predicts {_set(predicted[0], label_names)} for every row"


def one_class(
    predicted_N: np.ndarray, labels_N: np.ndarray, label_names: Sequence[str], unit: str
) -> str | None:
    """Likewise, of ids: for each `unit`, a row or a word, one class of several."""
    classes = len(np.unique(labels_N[labels_N >= 0]))
    if len(np.unique(predicted_N)) != 1 or classes < 2:
        return None
    only = label_names[int(predicted_N[0])]
    return f"the model predicts {only!r} for every {unit}, though there are {classes} classes"


def majority(labels_N: np.ndarray, label_names: Sequence[str]) -> str:
    """What the most frequent class alone comes to: "majority class 'positive': accuracy 0.5"."""
    counts = np.bincount(labels_N[labels_N >= 0])  # -1 is no label
    share = counts.max() / counts.sum()
    return f"majority class {label_names[int(counts.argmax())]!r}: accuracy {share:.4f}"


def _baseline(problem_type: str, labels: np.ndarray, label_names: Sequence[str]) -> str:
    """What a model comes to that sees no text."""
    if problem_type == "regression":
        return f"mean of the labels, {labels.mean():.4f}: mse {labels.var():.4f}"
    if problem_type == "single_label_classification":
        return majority(labels, label_names)
    sets, counts = np.unique(labels, axis=0, return_counts=True)
    often = _set(sets[counts.argmax()], label_names)
    return f"most frequent labels, {often}: accuracy {counts.max() / len(labels):.4f}"


def _set(label_C: np.ndarray, label_names: Sequence[str]) -> str:
    return (
        ", ".join(repr(name) for name, has in zip(label_names, label_C, strict=True) if has)
        or "no label"
    )


def text_report(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> str:
    """A report to read: the metrics, what they are without a model, a table with one line a class,
    the confusion matrix, notes.

    Arguments and errors are those of `classification_metrics`; the text ends with a newline.
    """
    values = classification_metrics(problem_type, logits, labels, label_names)
    logits, labels = checked(problem_type, logits, labels, len(label_names))
    blocks = [
        f"{len(labels)} examples",
        table([[n, f"{v:.4f}"] for n, v in values.items() if not n.startswith("f1/")]),
        _baseline(problem_type, labels, label_names),
    ]
    if problem_type != "regression":
        f1 = [values[f"f1/{name}"] for name in label_names]
        blocks += _class_tables(problem_type, logits, labels, label_names, f1)
    notes = undefined_notes(problem_type, logits, labels, label_names)
    if remark := one_prediction(problem_type, logits, labels, label_names):
        notes.insert(0, remark)
    if notes:
        blocks.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def _class_tables(
    problem_type: str,
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    f1: Sequence[float],
) -> list[str]:
    from sklearn import metrics as sk

    ids = list(range(len(label_names)))
    predicted = predictions(problem_type, logits)
    precision, recall, _, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=ids, average=None, zero_division=0
    )
    per_class = [["label", "precision", "recall", "f1", "rows"]]
    for name, *shares, count in zip(label_names, precision, recall, f1, support, strict=True):
        per_class.append([name, *(f"{share:.4f}" for share in shares), str(int(count))])
    if problem_type == "multi_label_classification":
        counts = sk.multilabel_confusion_matrix(labels, predicted)
        head = ["label", "right", "missed", "false", "rightly absent"]
        rows = [
            [name, str(m[1, 1]), str(m[1, 0]), str(m[0, 1]), str(m[0, 0])]
            for name, m in zip(label_names, counts, strict=True)
        ]
        return [table(per_class), "counts\n" + table([head, *rows])]
    matrix = sk.confusion_matrix(labels, predicted, labels=ids)
    # Columns carry the ids, not the names: a matrix of many or long names stays readable.
    head = ["", *map(str, ids)]
    rows = [[f"{c} {name}", *map(str, matrix[c])] for c, name in enumerate(label_names)]
    title = "confusion matrix (a row for each true label, a column for each predicted id)\n"
    return [table(per_class), title + table([head, *rows])]


def table(rows: list[list[str]]) -> str:
    """Aligned text; the first column to the left, the others to the right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first + " " * (widths[0] - _width(first))]
        cells += [" " * (w - _width(cell)) + cell for cell, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    # A wide (Chinese, Japanese, Korean) character takes two columns of a terminal.
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)
