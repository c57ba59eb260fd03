"""Loss and metric curves of a run as pictures."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jaxllm.metrics.figures import colours, legend_outside, legend_rows, plain, save, written

Points = Sequence[tuple[int, float]]  # (step, value)


def draw(records: list[dict[str, Any]], directory: Path, metric: str, best_step: int) -> None:
    """Writes curves.png and curves_all.png from the records of metrics.jsonl.

    The first has the loss of the training and of the dev part, and the metric that chooses the best
    model, with `best_step` (0: none) marked. The second has the other metrics, where there are any.
    """
    names = dict.fromkeys(key[5:] for r in records for key in r if key.startswith("eval/"))
    dev = {name: _points(records, f"eval/{name}") for name in names}
    _draw_main(_points(records, "loss"), dev, directory / "curves.png", metric, best_step)
    if any(points for name, points in dev.items() if name not in ("loss", metric)):
        _draw_others(dev, directory / "curves_all.png", metric)


def _points(records: list[dict[str, Any]], name: str) -> Points:
    return [(r["step"], r[name]) for r in records if r.get(name) is not None]


def _draw_main(train: Points, dev: dict[str, Points], path: Path, metric: str, best: int) -> None:
    from matplotlib.figure import Figure

    chosen = dev.get(metric, [])
    panels = 2 if metric != "loss" and chosen else 1
    text, fonts = _texts(dev)
    with fonts:
        figure = Figure(figsize=(5.5 * panels, 4))
        axes = figure.subplots(1, panels, squeeze=False)[0]
        blue, orange = colours(2)
        _line(axes[0], train, label="train", color=blue, linewidth=1)
        _line(axes[0], dev.get("loss", []), label="dev", color=orange, marker="o", markersize=4)
        plain(axes[0], title="loss", xlabel="step")
        if panels == 2:
            _line(axes[1], chosen, label="dev", color=orange, marker="o", markersize=4)
            plain(axes[1], title=text[metric], xlabel="step")
        value = dict(chosen).get(best)
        for axis in axes:
            if value is not None:
                axis.axvline(best, color="0.5", linewidth=1, linestyle="--", zorder=1)
            if axis is axes[-1] and value is not None:
                said = f"best {value:.4g} at step {best}"
                style = {"color": orange, "markeredgecolor": "black"}
                axis.plot(best, value, "*", markersize=13, label=said, **style)
            if axis.lines:
                axis.legend(frameon=False)
        figure.tight_layout()
        save(figure, path)


def _draw_others(dev: dict[str, Points], path: Path, metric: str) -> None:
    """Panels by scale: shares, what classes have each, and all else. Equal curves are one line."""
    from matplotlib.figure import Figure

    text, fonts = _texts(dev)
    panels: dict[str, dict[tuple, list[str]]] = {}  # kind -> points -> the metrics that have them
    for name, points in dev.items():
        if points and name not in ("loss", metric):
            small = all(-1 <= value <= 1 for _, value in points)
            kind = "by class" if "/" in name else "metrics" if small else "other scales"
            panels.setdefault(kind, {}).setdefault(tuple(points), []).append(text[name])
    heights = [max(3.4, 0.19 * legend_rows(len(lines))) for lines in panels.values()]
    colour = iter(colours(sum(map(len, panels.values()))))
    with fonts:
        figure = Figure(figsize=(8, sum(heights)))
        rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (kind, lines) in zip(rows, panels.items(), strict=True):
            for points, names in lines.items():
                label = " = ".join(names[:3]) + (" = …" if names[3:] else "")
                _line(axes, points, label=label, color=next(colour), marker="o", markersize=3)
            plain(axes, title=f"dev: {kind}")
            legend_outside(axes, len(lines))
        rows[-1].set_xlabel("step")
        figure.tight_layout()
        save(figure, path)


def _texts(names: Iterable[str]) -> tuple[dict[str, str], AbstractContextManager]:
    """Metrics as a picture can show them, see `figures.written`, by their names."""
    by_class = [name for name in names if "/" in name]
    classes, fonts = written([name.partition("/")[2] for name in by_class])
    texts = {name: name for name in names}
    for name, text in zip(by_class, classes, strict=True):
        texts[name] = f"{name.partition('/')[0]}/{text.strip()}"
    return texts, fonts


def _line(axes: Any, points: Points, **style: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **style)
