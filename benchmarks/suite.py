"""The suite: every workload, its variants one after the other, each in a process of its own.

Before a workload's runs one step of jaxllm and of PyTorch, from the same weights on the same texts,
must have the same loss and gradient norm, or the workload is refused. Each run appends one JSON
line to the output, with three timings.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, workers
from benchmarks.finetune import compare, say, warn_of_load
from benchmarks.flops import per_real_token
from benchmarks.workers import BenchmarkError
from benchmarks.workloads import SUITES, VARIANTS, StepJob, Workload, applies
from jaxllm.errors import InputError

WORKERS = {"jaxllm": "benchmarks.step_jaxllm", "torch": "benchmarks.step_torch"}
Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", required=True, choices=list(SUITES), help="for the machine at hand")
    add("--only", nargs="+", metavar="NAME", help="these workloads and variants alone")
    add("--output", default="suite.jsonl", metavar="FILE", help="(default: %(default)s)")
    add("--profile", metavar="DIR", help="a trace of three steps of each run goes here")
    names = [name for suite in SUITES.values() for name in suite.workloads]
    parser.epilog = (
        f"workloads: {', '.join(dict.fromkeys(names))}\n\nvariants: {', '.join(VARIANTS)}"
    )


def run(arguments: argparse.Namespace) -> list[Row]:
    """All runs.

    Raises:
        InputError: a name in `--only` that the suite does not have.
        BenchmarkError: no workload could be measured.
    """
    suite = SUITES[arguments.suite]
    workloads, variants = chosen(arguments.suite, arguments.only)
    if importlib.util.find_spec("torch") is None:
        variants = [name for name in variants if VARIANTS[name].side != "torch"]
        say("torch is not installed: no baseline, and no check of the loss")
    environment = {} if arguments.suite in ("gpu", "tpu") else workers.ON_CPU
    warn_of_load()
    common = {"suite": arguments.suite, "machine": machine.description()}
    rows: list[Row] = []
    problems: list[str] = []
    for name in workloads:
        workload = suite.workloads[name]
        with tempfile.TemporaryDirectory(prefix="jaxllm-suite-") as folder:
            session = Session(name, workload, Path(folder), environment, arguments.profile)
            try:
                gate = session.gate(compared=any(VARIANTS[v].side == "torch" for v in variants))
            except BenchmarkError as error:
                problems.append(f"{name}: {error}")
                say(problems[-1])
                continue
            for variant in variants:
                if not applies(VARIANTS[variant], workload):
                    continue
                try:
                    rows.append({**session.measure(variant), **common, "gate": gate})
                except BenchmarkError as error:  # the others are measured all the same
                    problems.append(f"{name}, {variant}: {error}")
                    say(problems[-1])
                    continue
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    if not rows:
        raise BenchmarkError("\n".join(["nothing was measured", *problems]))
    return rows


def chosen(suite: str, only: list[str] | None) -> tuple[list[str], list[str]]:
    """The names of the workloads and of the variants to run."""
    workloads, variants = list(SUITES[suite].workloads), list(SUITES[suite].variants)
    unknown = set(only or ()) - {*workloads, *variants}
    if unknown:
        raise InputError(
            f"--only: found {', '.join(sorted(unknown))}, expected workloads or variants of the "
            f"suite {suite}: {', '.join([*workloads, *variants])}"
        )
    picked = [[name for name in names if name in (only or ())] for names in (workloads, variants)]
    return picked[0] or workloads, picked[1] or variants


class Session:
    """The runs of one workload, from the same weights."""

    def __init__(
        self,
        name: str,
        workload: Workload,
        folder: Path,
        environment: dict[str, str],
        profile: str | None,
    ):
        self.name, self.workload, self.folder, self.profile = name, workload, folder, profile
        self.environment = environment
        self.job = StepJob("start", workload, VARIANTS["jaxllm"], str(folder / "model"))

    def gate(self, *, compared: bool) -> Row | None:
        """Writes the weights; what both sides computed, None where there is one side only."""
        say(f"{self.name}: writing the model that every run starts from")
        self.call("jaxllm", self.job)
        if not compared:
            return None
        say(f"{self.name}: checking that both sides compute the same")
        ours = self.call("jaxllm", replace(self.job, action="gate"))
        theirs = self.call(
            "torch", replace(self.job, action="gate", variant=VARIANTS["torch-eager"])
        )
        return compare(ours, theirs)

    def measure(self, name: str) -> Row:
        """One run."""
        variant = VARIANTS[name]
        before, date = machine.Load.now(), datetime.now(UTC).isoformat(timespec="seconds")
        profile = None if self.profile is None else f"{self.profile}/{self.name}/{name}"
        job = replace(self.job, action="run", variant=variant, profile=profile)
        figures = self.call(variant.side, job)
        after = machine.Load.now()
        speeds = [timing["real_tokens"] / timing["seconds"] for timing in figures["timings"]]
        flops = per_real_token(self.workload)
        speed = statistics.median(speeds)
        peak = figures["peak_flops"]
        say(f"{self.name}, {name}: {speed:,.0f} real tokens/s")
        return {
            "workload": self.name,
            "variant": name,
            "date": date,
            "shape": asdict(self.workload),
            "options": asdict(variant),
            "real_tokens_per_second": speed,
            "lowest": min(speeds),
            "highest": max(speeds),
            "flops_per_token": flops,
            "mfu": None if peak is None else speed * flops / peak,
            "other_load": after.others(before),
            **figures,
        }

    def call(self, side: str, job: StepJob) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            return workers.call(WORKERS[side], job, Path(name), environment=self.environment)
