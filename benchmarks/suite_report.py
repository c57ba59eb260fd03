"""Result rows, the suite's, those of fine-tuning and of a pipeline, as tables and as plots."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import pipeline
from benchmarks.report import QUIET, table, task_table
from jaxllm.errors import InputError

Row = dict[str, Any]
COLUMNS = ["variant", "real tokens/s", "x eager", "x best PyTorch", "padded tokens/s"]
COLUMNS += ["MFU", "peak memory", "first step"]


def read(files: list[str]) -> list[Row]:
    """The rows of result files; of what was measured again, the last.

    Raises:
        InputError: a file that cannot be read, or that holds something else.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for file in files:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
            for row in map(json.loads, lines):
                if "first_step_seconds" in row and "config" in row:
                    rows["pipeline", row["config"], *row["options"]] = row
                    continue
                what = row.get("workload") or (row.get("task"), row["seed"])
                rows[what, row["variant"], row.get("device")] = row
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: not a file of result rows: {error}") from error
    if not rows:
        raise InputError(f"{', '.join(files)}: there is no row")
    return list(rows.values())


def by_workload(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Rows by variant, of each workload; on each device, where there are several."""
    rows = [row for row in rows if "workload" in row]
    several = len({row["device"] for row in rows}) > 1
    grouped: dict[str, dict[str, Row]] = {}
    for row in rows:
        name = f"{row['workload']}, {row['device']}" if several else row["workload"]
        grouped.setdefault(name, {})[row["variant"]] = row
    return grouped


def markdown(rows: list[Row]) -> str:
    """A table for each workload, and below them where and when; one for all tasks."""
    tasks = [row for row in rows if "task" in row]
    others = ("workload", "task", "config")
    finetuned = [row for row in rows if not any(key in row for key in others)]
    parts = [make(some) for make, some in ((table, finetuned), (task_table, tasks)) if some]
    for row in (row for row in rows if "config" in row):
        what = " ".join([row["config"], *row["options"]])
        parts.append(f"{pipeline.table(row)}\n\n- {what}, {place(row)}")
    rows = [row for row in rows if "workload" in row]
    parts += [section(name, variants) for name, variants in by_workload(rows).items()]
    places = {
        json.dumps([row["device"], row["machine"]], sort_keys=True): row for row in reversed(rows)
    }
    parts += [place(row) for row in places.values()]
    return "\n\n".join(parts) + "\n"


def section(name: str, variants: dict[str, Row]) -> str:
    shape = next(iter(variants.values()))["shape"]
    described = (
        f"{shape['kind']} of {shape['shape']}, {shape['batch']} x {shape['length']} tokens, "
        f"texts: {shape['texts']}, dropout {shape['dropout']:g}, {shape['dtype']}"
    )
    lines = [f"### {name}", "", f"{described}.", "", line(COLUMNS)]
    lines.append(line(["---", *["---:"] * (len(COLUMNS) - 1)]))
    lines += [line(cells(row, variants)) for row in variants.values()]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(variants))])


def cells(row: Row, variants: dict[str, Row]) -> list[str]:
    speed = row["real_tokens_per_second"]
    padded = statistics.median(t["padded_tokens"] / t["seconds"] for t in row["timings"])
    eager = variants.get("torch-eager")
    return [
        row["variant"],
        f"{speed:,.0f} ({row['lowest']:,.0f} to {row['highest']:,.0f})",
        "" if eager is None else f"{speed / eager['real_tokens_per_second']:.2f}",
        "" if (best := best_torch(variants)) is None else f"{speed / best:.2f}",
        f"{padded:,.0f}",
        "" if row["mfu"] is None else f"{row['mfu']:.1%}",
        f"{row['peak_memory'] / 2**20:,.0f} MiB",
        f"{row['first_step_seconds']:.1f} s",
    ]


def best_torch(variants: dict[str, Row]) -> float | None:
    """Real tokens/s of the fastest PyTorch."""
    speeds = [
        row["real_tokens_per_second"]
        for row in variants.values()
        if row["options"]["side"] == "torch"
    ]
    return max(speeds, default=None)


def notes(variants: dict[str, Row]) -> list[str]:
    rows = list(variants.values())
    gate = rows[0]["gate"]
    said = ["Loss and gradient norm were not compared: there was nothing to compare with."]
    if gate is not None:
        keys = " and ".join(next(iter(gate.values())))
        sides = (
            f"{side} {', '.join(f'{value:.6g}' for value in values.values())}"
            for side, values in gate.items()
        )
        said = [f"Before, {keys}: {'; '.join(sides)}."]
    said.append(f"{rows[0]['flops_per_token'] / 1e6:.3g} MFLOP a real token.")
    for row in rows:
        if "versions" in row:
            versions = ", ".join(f"{name} {v}" for name, v in row["versions"].items())
            said.append(f"{row['variant']}: {versions}.")
    loads = [row["other_load"] for row in rows if row["other_load"] is not None]
    if loads and max(loads) > QUIET:
        said.append(f"Caution: other programs took up to {max(loads):.0%} of the machine.")
    return said


def place(row: Row) -> str:
    machine = row["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    device = [row["device"]] if "device" in row else []
    processors = f"{machine['cpus']} x {machine['cpu']}"
    said = ", ".join([row["date"][:10], *device, processors, f"Python {machine['python']}"])
    said += f", {versions}, revision {machine['git']}."
    if "timings" in row:
        said += (
            f" Medians of {len(row['timings'])} timings, the lowest and the highest in brackets."
        )
    return said


def line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def plot(rows: list[Row], directory: Path) -> list[Path]:
    """Bars of real tokens/s, peak memory and, where it is known, MFU for each workload, jaxllm's
    steps one below the other; lines over lengths and sizes of like workloads. The paths.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    paths = []

    def keep(figure: Any, name: str) -> None:
        figure.tight_layout()
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)

    for title, label, lines in scaling(rows):
        figure, axes = pyplot.subplots(figsize=(7, 3.5))
        for variant, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=variant)
        axes.set(title=title, xlabel=label, ylabel="real tokens/s", xscale="log", yscale="log")
        axes.legend()
        keep(figure, title)
    for name, variants in by_workload(rows).items():
        charts = bars(variants)
        size = (2.5 + 3 * len(charts), 0.4 * len(variants) + 1.2)
        figure, several = pyplot.subplots(1, len(charts), figsize=size, sharey=True, squeeze=False)
        names = list(variants)[::-1]
        colours = ["tab:blue" if v.startswith("jaxllm") else "tab:orange" for v in names]
        for axes, (label, values) in zip(several[0], charts.items(), strict=True):
            axes.barh(names, [values[v] for v in names], color=colours)
            axes.set_xlabel(label)
        speeds = charts["real tokens/s"]
        ends = [
            [speeds[v] - variants[v]["lowest"] for v in names],
            [variants[v]["highest"] - speeds[v] for v in names],
        ]
        several[0, 0].errorbar([speeds[v] for v in names], names, xerr=ends, fmt="none", c="black")
        figure.suptitle(name)
        keep(figure, name.replace(", ", "-").replace(" ", "-"))
    return paths


def bars(variants: dict[str, Row]) -> dict[str, dict[str, float]]:
    """By variant: real tokens/s, peak memory, and MFU where all have it."""
    charts = {
        "real tokens/s": {v: row["real_tokens_per_second"] for v, row in variants.items()},
        "peak memory, MiB": {v: row["peak_memory"] / 2**20 for v, row in variants.items()},
    }
    if all(row["mfu"] is not None for row in variants.values()):
        charts["MFU, %"] = {v: 100 * row["mfu"] for v, row in variants.items()}
    return charts


def scaling(rows: list[Row]) -> Iterator[tuple[str, str, dict[str, list[tuple[float, float]]]]]:
    """(title, what x is, points (x, real tokens/s) by variant), of what was measured at several."""
    kinds = {
        "length": ("tokens of a row", ("kind", "shape", "texts", "dropout", "dtype")),
        "size": ("MFLOP a token", ("kind", "length", "texts", "dropout", "dtype")),
    }
    rows = [row for row in rows if "workload" in row]
    several_devices = len({row["device"] for row in rows}) > 1
    for name, (label, same) in kinds.items():
        groups: dict[tuple, dict[str, list[tuple[float, float]]]] = {}
        for row in rows:
            shape = row["shape"]
            x = shape["length"] if name == "length" else row["flops_per_token"] / 1e6
            key = (*(shape[key] for key in same), row["device"])
            lines = groups.setdefault(key, {})
            lines.setdefault(row["variant"], []).append((x, row["real_tokens_per_second"]))
        for (kind, which, texts, dropout, dtype, device), lines in groups.items():
            several = {v: points for v, points in lines.items() if len({x for x, _ in points}) > 1}
            if several:
                title = f"{kind}-{which}-{texts}-dropout-{dropout:g}-{dtype}-by-{name}"
                if several_devices:
                    title += f"-{device}".replace(" ", "-")
                yield title, label, several
