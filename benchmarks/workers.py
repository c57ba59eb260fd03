"""Measurements in processes of their own: a job in, figures out, both as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from jaxllm.huge_pages import add_tunable

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class BenchmarkError(RuntimeError):
    """The comparison cannot be made: a worker failed, or the two sides do not agree."""


class Job(Protocol):
    @property
    def action(self) -> str: ...
    def write(self, path: Path) -> None: ...


def call(module: str, job: Job, folder: Path, *, environment: dict[str, str]) -> dict[str, Any]:
    """What ``python -m MODULE JOB RESULT`` leaves in RESULT; all files are in `folder`.

    Raises:
        BenchmarkError: it failed; with its last lines.
    """
    files = {part: folder / part for part in ("job", "result", "log")}
    job.write(files["job"])
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    inherited = {**os.environ, **environment, "PYTHONPATH": path}
    add_tunable(environ=inherited)  # as the command `jaxllm` does; here for all sides
    command = [sys.executable, "-m", module, str(files["job"]), str(files["result"])]
    with files["log"].open("w") as log:
        done = subprocess.run(command, env=inherited, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(files["log"].read_text(errors="replace").splitlines()[-30:])
        raise BenchmarkError(
            f"{module} ({job.action}) ended with status {done.returncode}:\n{tail}"
        )
    return json.loads(files["result"].read_text(encoding="utf-8"))
