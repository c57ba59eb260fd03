"""Generation by a random GPT-2, jaxllm beside PyTorch's `generate`, on the CPU in float32.

Each variant is a process of its own; the variants take turns, one call of `generate` at a time.
Before, all must write the same tokens, or the workload is refused. Measured are a whole call, the
time to the first token (a call that writes one), the peak memory, and what had to be compiled.
Each variant of each workload appends one JSON line to the output; a table ends the session.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.workers import ON_CPU, ROOT, BenchmarkError
from jaxllm.runtime.huge_pages import add_tunable

VARIANTS = ("jaxllm", "torch-eager", "torch-static", "torch-compile")


@dataclass(frozen=True)
class Workload:
    batch: int
    beams: int = 1
    prompt: int = 64
    new_tokens: int = 64


WORKLOADS = {
    "batch-8": Workload(8),
    "batch-1": Workload(1),
    "beam-4": Workload(8, beams=4),
    "beam-4-batch-1": Workload(1, beams=4),
}
SHAPES: dict[str, dict[str, int]] = {
    "gpt2-small": {},
    "tiny": {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 101},
}
# Makes the checkpoint in a process of its own: this one needs no torch.
_SAVE = """
import json, sys, torch, transformers
torch.manual_seed(0)
config = transformers.GPT2Config(bos_token_id=None, eos_token_id=None, **json.loads(sys.argv[1]))
transformers.GPT2LMHeadModel(config).save_pretrained(sys.argv[2])
"""


class Side:
    """A variant's process; it is asked one job after the other."""

    def __init__(self, variant: str, model: str, log: Path):
        environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        add_tunable(environ=environment)  # as the command `jaxllm` does; here for all sides
        command = [sys.executable, "-m", "benchmarks.generate_worker", variant, model]
        self.variant, self.log = variant, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, prompts: np.ndarray, workload: Workload, new_tokens: int) -> dict[str, Any]:
        """One call.

        Raises:
            BenchmarkError: the process failed; with its last lines.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"prompts": prompts.tolist(), "new_tokens": new_tokens, "beams": workload.beams}
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise BenchmarkError(f"{self.variant} failed:\n{tail}")
        return json.loads(line)


@contextmanager
def side(variant: str, model: str, folder: Path) -> Iterator[Side]:
    one = Side(variant, model, folder / f"{variant}.log")
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def measure(
    name: str, variants: list[str], model: str, vocabulary: int, repeats: int, folder: Path
) -> list[dict[str, Any]]:
    """A row for each variant.

    Raises:
        BenchmarkError: a variant failed, or two write different tokens.
    """
    workload = WORKLOADS[name]
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, vocabulary, (workload.batch, workload.prompt))
    with ExitStack() as stack:
        sides = [stack.enter_context(side(variant, model, folder)) for variant in variants]
        first: dict[str, list[dict[str, Any]]] = {}
        for one in sides:  # compiles
            first[one.variant] = [
                one.ask(prompts, workload, n) for n in (workload.new_tokens, 1, workload.new_tokens)
            ]
            check(first, name)
        began = machine.Load.now()
        calls: dict[str, list[tuple[dict, dict]]] = {variant: [] for variant in variants}
        for _ in range(repeats):
            for one in sides:
                whole = one.ask(prompts, workload, workload.new_tokens)
                calls[one.variant].append((whole, one.ask(prompts, workload, 1)))
        ended = machine.Load.now()
    rows = []
    for variant, turns in calls.items():
        seconds = [whole["seconds"] for whole, _ in turns]
        row = {
            "workload": name,
            **asdict(workload),
            "variant": variant,
            "seconds": seconds,
            "tokens_per_second": workload.batch * workload.new_tokens / statistics.median(seconds),
            "first_token_seconds": [one["seconds"] for _, one in turns],
            "first_call_seconds": first[variant][0]["seconds"],
            "compiled": first[variant][0]["compiled"],
            "compiled_later": sum(call["compiled"] for turn in turns for call in turn),
            "peak_memory": turns[-1][1]["peak_memory"],
        }
        rows.append(row)
    busy = ended.busy - began.busy if ended.busy is not None and began.busy is not None else None
    for row in rows:
        row["machine_busy"] = busy and busy / ((ended.when - began.when) * (os.cpu_count() or 1))
    return rows


def check(calls: dict[str, list[dict[str, Any]]], name: str) -> None:
    """All variants so far write what the first one does."""
    (reference, (expected, *_)), *others = calls.items()
    for variant, (found, *_) in others:
        if found["sequences"] != expected["sequences"]:
            raise BenchmarkError(f"{name}: {variant} and {reference} write different tokens")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; `x` is how many times as fast as PyTorch's eager dynamic cache."""
    lines = [
        "| workload | variant | tokens/s | x eager | first token | peak memory | compiled |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    eager = {row["workload"]: row for row in rows if row["variant"] == "torch-eager"}
    for row in rows:
        beside = eager.get(row["workload"])
        times = row["tokens_per_second"] / beside["tokens_per_second"] if beside else None
        batch_tokens = row["batch"] * row["new_tokens"]
        low, high = (batch_tokens / pick(row["seconds"]) for pick in (max, min))
        cells = [
            row["workload"],
            row["variant"],
            f"{row['tokens_per_second']:.1f} ({low:.1f} to {high:.1f})",
            "" if times is None else f"{times:.2f}",
            f"{1000 * statistics.median(row['first_token_seconds']):.0f} ms",
            f"{row['peak_memory'] / 2**20:,.0f} MiB",
            f"{row['compiled']}, later {row['compiled_later']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    add("--repeats", type=int, default=7, help="turns (default: %(default)s)")
    add("--shape", choices=SHAPES, default="gpt2-small", help="default: %(default)s")
    add("--output", default="results.jsonl", metavar="FILE", help="lines are appended here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 1 when a workload could not be compared."""
    arguments = parser().parse_args(argv)
    shape, rows, status = SHAPES[arguments.shape], [], 0
    facts = {"shape": arguments.shape, "machine": machine.description()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = str(folder / "model")
        command = [sys.executable, "-c", _SAVE, json.dumps(shape), model]
        subprocess.run(command, check=True, capture_output=True)
        vocabulary = json.loads(Path(model, "config.json").read_text())["vocab_size"]
        for name in arguments.only:
            try:
                found = measure(
                    name, arguments.variants, model, vocabulary, arguments.repeats, folder
                )
            except BenchmarkError as error:
                print(f"benchmarks.generate: {error}", file=sys.stderr)
                status = 1
                continue
            rows += found
            with open(arguments.output, "a", encoding="utf-8") as output:
                for row in found:
                    date = datetime.now(UTC).isoformat(timespec="seconds")
                    output.write(json.dumps({"date": date, **row, **facts}) + "\n")
    print(table(rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
