"""Pictures of how a classifier does: ROC curves, and what it takes for what."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxllm.metrics.classification import predictions, probabilities, roc_auc
from jaxllm.metrics.figures import colours, legend_outside, plain, save, written

_LEGEND = 20  # curves that a legend names; of more only the worst
_WORST = 10
_COUNTED = 30  # classes of a matrix with a number in each cell
_NAMED = 60  # classes whose names all stand beside the matrix


def roc(path: Path, truth_NC: np.ndarray, share_NC: np.ndarray, names: Sequence[str]) -> bool:
    """Draws the ROC curve of each class against the rest; of two exclusive classes, of the second.

    Args:
        truth_NC: whether a row has a label.
        share_NC: its probability.
        names: of the columns.

    Returns:
        Whether there is a curve: a class needs rows with it and rows without.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    known = [c for c in range(len(names)) if 0 < truth_NC[:, c].sum() < len(truth_NC)]
    if not known:
        return False
    curves = {c: roc_curve(truth_NC[:, c], share_NC[:, c])[:2] for c in known}
    area = {c: roc_auc(truth_NC[:, c], share_NC[:, c]) for c in known}
    shown = known if len(known) <= _LEGEND else sorted(known, key=lambda c: area[c])[:_WORST]
    texts, fonts = written(names)
    with fonts:
        figure = Figure(figsize=(5, 5))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        for c in set(known) - set(shown):
            axes.plot(*curves[c], color="0.85", linewidth=0.8)
        for c, colour in zip(shown, colours(len(shown)), strict=True):
            label = f"{texts[c]}: {area[c]:.4f}"
            axes.plot(*curves[c], color=colour, linewidth=1.6, label=label)
        title = "ROC (area under the curve)"
        if len(shown) < len(known):
            title += f"\nthe {_WORST} smallest of {len(known)} classes"
        labels = {"xlabel": "false positive rate", "ylabel": "true positive rate"}
        plain(axes, title=title, **labels)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        legend_outside(axes, len(shown))
        save(figure, path)
    return True


def confusion(
    path: Path, counts: np.ndarray, rows: Sequence[str], columns: Sequence[str] | None = None
) -> None:
    """Draws counts [R, C] as a matrix, coloured by their share of the row.

    Args:
        rows: names of the true labels.
        columns: names of the columns; None = the labels again, as what was predicted.
    """
    from matplotlib.figure import Figure

    R, C = counts.shape
    texts, fonts = written(rows)
    across = texts if columns is None else list(columns)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    counted = max(R, C) <= _COUNTED
    cell = 0.42 if counted else 0.15
    size = [min(max(cell * n, 2.0), 14.0) for n in (C, R)]
    with fonts:
        figure = Figure(figsize=(size[0] + 2, size[1] + 1.5))
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        small = 9 if counted else 6
        for axis, names in ((axes.xaxis, across), (axes.yaxis, texts)):
            every = -(-len(names) // _NAMED)
            axis.set_ticks(range(0, len(names), every), names[::every], fontsize=small)
        long = max(map(len, across)) * 0.09 > size[0] / C
        axes.tick_params(axis="x", rotation=90 if long else 0)
        axes.set(ylabel="label", xlabel="predicted" if columns is None else "")
        if counted:
            for axis, n in ((axes.xaxis, C), (axes.yaxis, R)):
                axis.set_ticks(np.arange(1, n) - 0.5, minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="minor", length=0)
            for (r, c), count in np.ndenumerate(counts):
                if count:
                    ink = "white" if share[r, c] > 0.55 else "black"
                    text = f"{int(count)}"
                    axes.text(c, r, text, ha="center", va="center", fontsize=8, color=ink)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
        bar.set_label("share of the row")
        bar.outline.set_visible(False)
        axes.spines[:].set_visible(False)
        save(figure, path)


def draw(
    directory: Path,
    problem_type: str,
    logits_NC: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
) -> None:
    """Writes roc.png and confusion.png; arguments as in `metrics.classification_metrics`.

    Where no class has a ROC curve, there is no roc.png. With several labels a row the matrix has,
    for each label, the rows where it is right, missed and false.
    """
    from sklearn import metrics as sk

    multi = problem_type == "multi_label_classification"
    predicted = predictions(problem_type, logits_NC)
    share_NC = probabilities(problem_type, logits_NC)
    truth_NC = labels > 0 if multi else labels[:, None] == np.arange(len(names))
    if multi:
        tables = sk.multilabel_confusion_matrix(labels, predicted)
        counts = np.stack([tables[:, 1, 1], tables[:, 1, 0], tables[:, 0, 1]], axis=1)
    else:
        counts = sk.confusion_matrix(labels, predicted, labels=list(range(len(names))))
    columns = ("right", "missed", "false") if multi else None
    confusion(directory / "confusion.png", counts, names, columns)
    only = slice(1, 2) if len(names) == 2 and not multi else slice(None)
    if not roc(directory / "roc.png", truth_NC[:, only], share_NC[:, only], names[only]):
        (directory / "roc.png").unlink(missing_ok=True)  # of an evaluation before
