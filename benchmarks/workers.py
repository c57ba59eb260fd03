"""Measurements in processes of their own: a job in, figures out, both as JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from jaxllm.runtime import cpu_guard
from jaxllm.runtime.huge_pages import add_tunable

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class BenchmarkError(RuntimeError):
    """The comparison cannot be made: a worker failed, or the two sides do not agree."""


class Job(Protocol):
    @property
    def action(self) -> str: ...
    def write(self, path: Path) -> None: ...


class Worker:
    """``PYTHON -m MODULE JOB RESULT`` in a process; all its files are in `folder`.

    A job whose action is "run" touches the file `ready` when it has compiled, and waits for `go`.
    """

    def __init__(
        self,
        module: str,
        job: Job,
        folder: Path,
        *,
        environment: dict[str, str],
        python: str = sys.executable,
    ):
        self.module, self.action, self.folder = module, job.action, folder
        job.write(folder / "job")
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        inherited = {**os.environ, **environment, "PYTHONPATH": path}
        if python != sys.executable:  # its jaxlib may not know the flag; jaxllm adds it there, too
            flags = inherited.get("XLA_FLAGS", "")
            inherited["XLA_FLAGS"] = flags.replace(cpu_guard.setting(), "").strip()
        add_tunable(environ=inherited)  # as the command `jaxllm` does; here for all sides
        command = [python, "-m", module, str(folder / "job"), str(folder / "result")]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, env=inherited, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_until_ready(self) -> None:
        while not (self.folder / "ready").exists() and self.process.poll() is None:
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        """What it found; it may go on until then.

        Raises:
            BenchmarkError: it failed; with its last lines.
        """
        self.process.communicate(b"go\n")
        status = self.process.returncode
        if status:
            lines = (self.folder / "log").read_text(errors="replace").splitlines()
            tail = "\n".join(lines[-30:])
            raise BenchmarkError(
                f"{self.module} ({self.action}) ended with status {status}:\n{tail}"
            )
        return json.loads((self.folder / "result").read_text(encoding="utf-8"))


def call(module: str, job: Job, folder: Path, **options: Any) -> dict[str, Any]:
    """The result of one worker, see `Worker`."""
    worker = Worker(module, job, folder, **options)
    try:
        return worker.result()
    finally:
        worker.process.kill()
