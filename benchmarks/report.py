"""The Markdown tables of ``benchmarks.finetune`` and ``benchmarks.tasks``, from result rows."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

ENOUGH_STEPS = 20
QUIET = 0.05  # share of the machine that other programs may take before it is worth a line
BASELINES = ("torch-float32", "torch-bfloat16")


def table(rows: list[Row]) -> str:
    """One line a variant, the ratios to PyTorch, and what a reader should hold against them.

    Speeds are medians over the seeds with the lowest and the highest; a ratio is one of medians.
    """
    variants = by_variant(rows)
    metric = rows[0]["metric"]
    head = ["", "real tokens/s", "padded tokens/s", "real tokens", metric, "peak memory"]
    head += ["compile", "steps", "whole run", *(f"speed / {b}" for b in BASELINES)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[name, *_cells(runs, variants)] for name, runs in variants.items()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = [_facts(rows), _place(rows), *_factors(variants), *_cautions(rows, variants)]
    return f"{text}\n\n" + "\n".join(f"- {note}" for note in notes)


def task_table(rows: list[Row]) -> str:
    """A line for each task and pair of variants: the scores, and the speeds with their ratio.

    "within": whether jaxllm's mean score is among PyTorch's, else how far it is from the nearest.
    """
    head = ["task", "metric", "jaxllm", "PyTorch", "within", "real tokens/s", "PyTorch", "ratio"]
    lines = [["", *head], ["---", "---", "---", *["---:"] * (len(head) - 2)]]
    notes = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        variants, metric = by_variant(own), own[0]["metric"]
        notes += [
            f"{task}: {note}" for note in (_facts(own), *_cautions(own, variants, BASELINES[:1]))
        ]
        for name, baseline in itertools.product(variants, BASELINES):
            if name in BASELINES or baseline not in variants:
                continue
            ours, theirs = variants[name], variants[baseline]
            scores = [row[metric] for row in theirs]
            mean = statistics.mean(row[metric] for row in ours)
            nearest = min(scores, key=lambda score: abs(score - mean))
            lines.append(
                [
                    f"{name} / {baseline}",
                    task,
                    metric,
                    mean_and_deviation(ours, metric),
                    mean_and_deviation(theirs, metric),
                    "yes" if min(scores) <= mean <= max(scores) else f"{mean - nearest:+.4f}",
                    _spread(row["real_tokens_per_second"] for row in ours),
                    _spread(row["real_tokens_per_second"] for row in theirs),
                    f"{ratio(ours, theirs):.2f}",
                ]
            )
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n" + "\n".join(f"- {note}" for note in [*notes, _place(rows)])


def by_variant(rows: list[Row]) -> dict[str, list[Row]]:
    variants: dict[str, list[Row]] = {}
    for row in rows:
        variants.setdefault(row["variant"], []).append(row)
    return variants


def median(runs: list[Row], key: str) -> float:
    return statistics.median(row[key] for row in runs)


def ratio(runs: list[Row], baseline: list[Row], key: str = "real_tokens_per_second") -> float:
    """Median of `runs` over median of `baseline`."""
    return median(runs, key) / median(baseline, key)


def _cells(runs: list[Row], variants: dict[str, list[Row]]) -> list[str]:
    real = median(runs, "real_tokens_per_second")
    padded = median(runs, "padded_tokens_per_second")
    return [
        _spread(row["real_tokens_per_second"] for row in runs),
        _spread(row["padded_tokens_per_second"] for row in runs),
        f"{real / padded:.0%}",
        mean_and_deviation(runs, runs[0]["metric"]),
        f"{median(runs, 'peak_memory') / 2**20:,.0f} MiB",
        f"{median(runs, 'compile_seconds'):.1f} s",
        f"{median(runs, 'steps'):.0f}",
        f"{median(runs, 'wall_seconds'):.0f} s",
        *(f"{ratio(runs, variants[b]):.2f}" if b in variants else "" for b in BASELINES),
    ]


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    middle = f"{statistics.median(ordered):,.0f}"
    return middle if len(ordered) == 1 else f"{middle} ({ordered[0]:,.0f} to {ordered[-1]:,.0f})"


def mean_and_deviation(runs: list[Row], key: str) -> str:
    """Mean and sample standard deviation, such as "0.8330 ± 0.0021"."""
    values = [row[key] for row in runs]
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _facts(rows: list[Row]) -> str:
    row = rows[0]
    seeds = len({row["seed"] for row in rows})
    return (
        f"{row['model']}, {row['train_examples']:,} training and {row['dev_examples']:,} dev "
        f"rows, {seeds} seed{'s' * (seeds > 1)}, {row['date'][:10]}"
    )


def _place(rows: list[Row]) -> str:
    machine = rows[0]["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    return (
        f"{machine['cpus']} x {machine['cpu']}, Python {machine['python']}, {versions}, "
        f"revision {machine['git']}"
    )


def _factors(variants: dict[str, list[Row]]) -> list[str]:
    """Splits each ratio to PyTorch into fewer padding tokens and faster steps."""
    ours = [name for name in variants if name not in BASELINES]
    lines = []
    for name in ours:
        for baseline in (b for b in BASELINES if b in variants):
            whole = ratio(variants[name], variants[baseline])
            step = ratio(variants[name], variants[baseline], "padded_tokens_per_second")
            lines.append(
                f"{name} / {baseline}: {whole:.2f} = {whole / step:.2f} (less padding) "
                f"x {step:.2f} (padded tokens/s)"
            )
    return lines


def _cautions(
    rows: list[Row], variants: dict[str, list[Row]], baselines: Sequence[str] = BASELINES
) -> list[str]:
    lines = []
    if any(row["gate"] is None for row in rows):
        lines.append("Caution: loss parity was not checked, for want of one of the two sides.")
    if any(row["timed_steps"] < ENOUGH_STEPS for row in rows):
        lines.append(f"Caution: fewer than {ENOUGH_STEPS} timed steps; not a measurement.")
    loads = [row["other_load"] for row in rows if row["other_load"] is not None]
    if loads and max(loads) > QUIET:
        busy = sum(load > QUIET for load in loads)
        lines.append(
            f"Caution: other programs took up to {max(loads):.0%} of the machine "
            f"during {busy} of {len(rows)} runs."
        )
    missing = [b for b in baselines if b not in variants]
    if missing:
        lines.append(f"Caution: no baseline {' and '.join(missing)} in this session.")
    return lines
