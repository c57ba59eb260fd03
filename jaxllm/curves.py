"""Loss and metric curves of a run as a picture."""

import io
from pathlib import Path
from typing import Any

from jaxllm.files import write_atomic


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Writes a PNG from the records of metrics.jsonl.

    The training and evaluation loss are in one panel, all other evaluation metrics in another.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    names = sorted({name for r in records for name in r if name.startswith("eval/")})
    _line(losses, records, "loss", label="train", linewidth=1)
    for name in names:
        axes = losses if name == "eval/loss" else metrics
        _line(axes, records, name, label=name.removeprefix("eval/"), marker="o", markersize=3)
    losses.set(title="loss", xlabel="step")
    metrics.set(title="evaluation", xlabel="step")
    for axes in (losses, metrics):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())


def _line(axes: Any, records: list[dict[str, Any]], name: str, **style: Any) -> None:
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
