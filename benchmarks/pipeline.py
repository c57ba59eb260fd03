"""What is around the steps of a training job: its feed and its start.

Any configuration of ``jaxllm train``. The feed is reading, packing and masking of the batches, as
the run does it, with no step beside it; the step is that of the run, on one batch again and again.
The starts are two runs of one step, with empty caches and then with what the first left there:
seconds from the start of the command to the end of the step, of compilation, and of the whole run,
evaluation and saving included. Appends one JSON line to the output.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.workers import BenchmarkError
from jaxllm.runs.log import METRICS

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="of jaxllm train")
    add("--seconds", type=float, default=10, help="of each measurement (default: %(default)s)")
    add("--output", default="pipeline.jsonl", metavar="FILE", help="(default: %(default)s)")
    parser.epilog = "Further options, --section.field value, are those of jaxllm train."


def run(arguments: argparse.Namespace, rest: list[str]) -> str:
    """A row's table; the row is written to the output.

    Raises:
        InputError: the configuration or its data, as in training.
        BenchmarkError: a run of one step failed.
    """
    options = ["--config", arguments.config, *rest]
    row = {
        "config": arguments.config,
        "options": rest,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "import_seconds": import_seconds(),
        **starts(options),
        **feed(options, arguments.seconds),
        "machine": machine.description(),
    }
    with open(arguments.output, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return table(row)


def import_seconds() -> float:
    """Of all that a training run imports, in a fresh interpreter."""
    program = "import time; t = time.perf_counter(); from jaxllm.runtime import no_torch; "
    program += "no_torch.hide(); import jaxllm.runs.loop, jaxllm.tasks.build; "
    program += "print(time.perf_counter() - t)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def starts(options: list[str]) -> Row:
    """Seconds to the first step, of compilation, and of all, of a first and a second run."""
    figures: Row = {}
    with tempfile.TemporaryDirectory(prefix="jaxllm-pipeline-") as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        for name in ("first", "second"):
            place = f"{folder}/{name}"
            command = [sys.executable, "-m", "jaxllm", "train", *options]
            command += ["--train.steps", "1", "--run.log_every", "1"]
            command += ["--run.dir", place, "--run.seeds", "null"]
            stepped, log = None, Path(folder, f"{name}.log")
            began = time.perf_counter()
            with log.open("w") as output:
                run = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                while run.poll() is None:
                    time.sleep(0.02)
                    if stepped is None and holds_a_line(Path(place, METRICS)):
                        stepped = time.perf_counter() - began
            seconds = time.perf_counter() - began
            if run.returncode or stepped is None:
                raise BenchmarkError(f"{' '.join(command)}:\n{log.read_text()[-2000:]}")
            summary = json.loads(Path(place, "summary.json").read_text(encoding="utf-8"))
            figures[f"{name}_step_seconds"] = stepped
            figures[f"{name}_compile_seconds"] = summary["train/compile_seconds"]
            figures[f"{name}_run_seconds"] = seconds
    return figures


def holds_a_line(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def feed(options: list[str], seconds: float) -> Row:
    """Real tokens a second of the feed alone and of the step alone."""
    import jax

    from jaxllm.config import reading
    from jaxllm.data.loader import LoaderState
    from jaxllm.tasks.build import build

    began = time.perf_counter()
    job = build(reading.load(options))
    prepared = time.perf_counter() - began
    batches = job.loader.batches(LoaderState(), prefetch=2)
    batch = next(batches)
    tokens, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        fed = next(batches)
        jax.block_until_ready(fed.arrays)
        tokens += fed.real_tokens
    fed_speed = tokens / spent
    batches.close()  # type: ignore[attr-defined]

    state, _ = job.train_step(job.state, batch.arrays)
    jax.block_until_ready(state)
    steps, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        state, _ = job.train_step(state, batch.arrays)
        jax.block_until_ready(state)
        steps += 1
    step_speed = steps * batch.real_tokens / spent
    return {
        "prepare_seconds": prepared,
        "feed_tokens_per_second": fed_speed,
        "step_tokens_per_second": step_speed,
    }


def table(row: Row) -> str:
    """Markdown."""
    ratio = row["feed_tokens_per_second"] / row["step_tokens_per_second"]
    cells = {
        "imports": f"{row['import_seconds']:.1f} s",
        "first start: step, compiling, run": "{first_step_seconds:.1f} s, "
        "{first_compile_seconds:.1f}, {first_run_seconds:.1f}",
        "second start": "{second_step_seconds:.1f} s, "
        "{second_compile_seconds:.1f}, {second_run_seconds:.1f}",
        "feed, real tokens/s": "{feed_tokens_per_second:,.0f}",
        "step, real tokens/s": "{step_tokens_per_second:,.0f}",
        "feed / step": f"{ratio:.1f}",
    }
    lines = [cells.keys(), ["---:"] * len(cells), [x.format(**row) for x in cells.values()]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
