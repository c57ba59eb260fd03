"""Fine-tuning of a pretrained BERT on several tasks, jaxllm beside the plain PyTorch loop.

The runs of ``benchmarks.finetune`` for each task, with that task's recipe, in one session: the same
gate, the same seeds, the variants taking turns. Each run appends one JSON line to the output; a
Markdown table with a line for each task ends the session.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.examples import Content, labelled, questions, tagged
from benchmarks.finetune import VARIANTS, add_session_options, run, session, warn_of_load
from benchmarks.recipe import Recipe
from benchmarks.report import Row, task_table
from jaxllm.errors import InputError


@dataclass(frozen=True)
class Task:
    """Where a task's rows are and how a model is fine-tuned on them.

    files: patterns, as they lie in the folder of all tasks.
    read: makes the two parts of the files, `count` examples (None: all) in the first.
    examples: so many by default.
    """

    files: tuple[str, ...]
    read: Callable[..., Content]
    recipe: Recipe
    examples: int | None = None

    def content(self, folder: Path, count: int | None) -> Content:
        """Both parts; InputError where a file is missing or is not as it should be."""
        found = [sorted(folder.glob(file)) for file in self.files]
        for file, paths in zip(self.files, found, strict=True):
            if not paths:
                raise InputError(f"{folder / file}: there is no such file")
        return self.read(*(str(paths[0]) for paths in found), count=count or self.examples)


PAIR = ("sentence1", "sentence2")
STS = ["genre", "file", "year", "id", "score", *PAIR]
TASKS = {
    "rte": Task(
        ("rte/train.tsv", "rte/dev.tsv"),
        partial(labelled, columns=(*PAIR, "label")),
        # After one epoch neither side has learned more than the share of the larger class.
        Recipe(epochs=3, max_length=128, learning_rate=1e-4),
    ),
    "stsb": Task(
        ("stsb/sts-train.csv", "stsb/sts-dev.csv"),
        partial(labelled, columns=(*PAIR, "score"), header=STS, regression=True),
        Recipe(max_length=128, learning_rate=1e-4),
    ),
    "sst2": Task(("sst2/train.tsv.gz", "sst2/dev.tsv"), labelled, Recipe(), examples=8000),
    "wnut17": Task(
        ("wnut17/wnut17train.conll", "wnut17/emerging.dev.conll"),
        tagged,
        Recipe(max_length=80, learning_rate=3e-4),  # the longest sentence has 75 tokens
    ),
    "squad2": Task(
        ("squad2/dev-v2.0*.json",),
        questions,
        Recipe(batch_size=24, max_length=384, learning_rate=1e-4),
    ),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="files in DIR:\n"
        + "\n".join(f"  {name:<6} {', '.join(task.files)}" for name, task in TASKS.items())
        + "\n\nSQuAD's small part is enough: its last two articles are the dev part.",
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
    folder = Path(arguments.data)
    contents = {  # all files are read before the first run
        name: task.content(folder, arguments.examples) for name, task in chosen.items()
    }
    warn_of_load()
    return [
        row
        for name, task in chosen.items()
        for row in session(contents[name], arguments, recipe=task.recipe, facts={"task": name})
    ]


if __name__ == "__main__":
    sys.exit(main())
