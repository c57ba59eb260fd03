"""Fine-tuning of a pretrained BERT on several tasks, jaxllm beside the plain PyTorch loop.

The runs of ``benchmarks.finetune`` for each task, with that task's recipe, in one session: the same
gate, the same seeds, the variants taking turns. Each run appends one JSON line to the output; a
Markdown table with a line for each task ends the session.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.examples import select
from benchmarks.finetune import VARIANTS, add_session_options, run, session, warn_of_load
from benchmarks.recipe import Recipe
from benchmarks.report import Row, task_table


@dataclass(frozen=True)
class Task:
    """Where a task's rows are and how a model is fine-tuned on them.

    columns: of the text or texts and, last, of the label.
    header: the names of the files' columns; None = they are in the first line.
    examples: so many training rows are drawn; None = all.
    """

    train: str
    dev: str
    columns: tuple[str, ...]
    recipe: Recipe
    header: list[str] | None = None
    examples: int | None = None
    regression: bool = False


STS = ["genre", "file", "year", "id", "score", "sentence1", "sentence2"]
TASKS = {
    "rte": Task(
        "rte/train.tsv",
        "rte/dev.tsv",
        ("sentence1", "sentence2", "label"),
        Recipe(epochs=3, max_length=128),
    ),
    "stsb": Task(
        "stsb/sts-train.csv",
        "stsb/sts-dev.csv",
        ("sentence1", "sentence2", "score"),
        Recipe(epochs=3, max_length=128),
        header=STS,
        regression=True,
    ),
    "sst2": Task(
        "sst2/train.tsv.gz", "sst2/dev.tsv", ("sentence", "label"), Recipe(), examples=8000
    ),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="files in DIR:\n"
        + "\n".join(f"  {name:<6} {task.train}, {task.dev}" for name, task in TASKS.items()),
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="folder with the files named below"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=list(TASKS),
        metavar="TASK",
        help="these tasks alone (default: all)",
    )
    parser.add_argument(
        "--examples", type=int, help="training rows of each task (default: the task's own number)"
    )
    add_session_options(parser, list(VARIANTS), ["jaxllm-float32", "torch-float32"])
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: as `benchmarks.finetune.main`."""
    return run("benchmarks.tasks", parser().parse_args(argv), benchmark, task_table)


def benchmark(arguments: argparse.Namespace) -> list[Row]:
    """All runs of all tasks."""
    chosen = {name: TASKS[name] for name in TASKS if name in arguments.tasks}
    parts = {  # all files are read before the first run
        name: select(
            str(Path(arguments.data) / task.train),
            str(Path(arguments.data) / task.dev),
            arguments.examples or task.examples,
            task.columns,
            header=task.header,
            regression=task.regression,
        )
        for name, task in chosen.items()
    }
    warn_of_load()
    return [
        row
        for name, task in chosen.items()
        for row in session(
            *parts[name],
            arguments,
            recipe=task.recipe,
            regression=task.regression,
            facts={"task": name},
        )
    ]


if __name__ == "__main__":
    sys.exit(main())
