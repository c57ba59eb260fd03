"""The directory of a run: who may write it, whose it is, what it holds.

run.dir/  config.yaml  metrics.jsonl  tensorboard/  wandb/  checkpoints/  model/
          predictions.jsonl  report.txt  roc.png  confusion.png  curves.png  curves_all.png
          profile/  summary.json (written last: a run is finished when it is there)
"""

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxllm.config.reading import Config, to_yaml, yaml_text
from jaxllm.config.renamed import RENAMED
from jaxllm.errors import InputError
from jaxllm.files import (
    finite,
    reading,
    recover_directory,
    replace_directory,
    write_atomic,
    write_json,
    writing,
)
from jaxllm.runs import summary
from jaxllm.runtime import processes

logger = logging.getLogger("jaxllm.runs.directory")

LOCK = ".lock"
UNFINISHED = ".unfinished"  # beside summary.json: a finished run goes on, for more epochs

# These may differ between a run and its resumption: they change what is shown, kept or how fast it
# goes, not what is computed. (Another mesh rounds differently; its batches must have as many rows.)
HARMLESS = (
    "run.dir",
    "run.seeds",
    "run.keep",
    "run.log_every",
    "run.trackers",
    "run.progress",
    "run.push_to_hub",
    "train.profile",
    "data.workers",
    "data.cache_dir",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.processes",
)


# Orbax reads a snapshot's path as a pattern: `[a]` is then the letter a, and `*` another run as
# well. TensorStore reads a backslash as a slash.
_REFUSED = "[]*?\\"


def check_path(directory: str) -> None:
    """Raises InputError for the path of a run whose snapshots could not be read again."""
    path = os.path.abspath(directory)
    found = [character for character in _REFUSED if character in path]
    try:
        path.encode()
    except UnicodeEncodeError:
        found.append("a byte that is not UTF-8")
    if "\0" in path:
        found.append("the character NUL")
    if found:
        raise InputError(
            f"run.dir: found {path!r} with {' and '.join(found)} in it, where no snapshot can be "
            f"read; expected a path in UTF-8 without any of {' '.join(_REFUSED)}. Give another "
            "run.dir"
        )


# A finished run goes on with more of these.
LENGTH = ("train.epochs", "train.steps")


def changes(old: str, new: str) -> dict[str, tuple[Any, Any]]:
    """{"train.seed": (0, 1), …} between two configs as YAML, the harmless keys left out."""
    before, after = (_flat(yaml_text.load(text)) for text in (old, new))
    pairs = {
        key: (before.get(key, "(absent)"), after.get(key, "(absent)"))
        for key in sorted(before.keys() | after.keys())
        if key not in HARMLESS
    }
    return {key: (x, y) for key, (x, y) in pairs.items() if x != y}


def told(changed: dict[str, tuple[Any, Any]]) -> str:
    """ "train.seed: 0 -> 1; train.steps: 6 -> null; …" """
    pairs = {key: ["null" if x is None else x for x in pair] for key, pair in changed.items()}
    return "; ".join(f"{key}: {old} -> {new}" for key, (old, new) in pairs.items())


def _flat(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or not all(isinstance(s, dict) for s in config.values()):
        raise ValueError("no sections of keys")
    flat = {f"{section}.{key}": x for section, keys in config.items() for key, x in keys.items()}
    return {RENAMED.get(key, key): x for key, x in flat.items()}


class RunDir:
    """A run's directory, held by one run at a time; a context manager that takes the lock.

    Attributes:
        going_on: the run here was finished once, and `config` asks for more epochs or steps.

    Raises:
        InputError: on entry, when another run holds it, or it belongs to something else or to a run
            of another config.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = Path(config.run.dir)
        self.snapshots = self.path / "checkpoints"
        self.model = self.path / "model"
        self.writer = jax.process_index() == 0
        self.going_on = False
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "RunDir":
        check_path(self.config.run.dir)
        processes.check_same("the configuration", lambda: to_yaml(self.config))
        with self._open as stack:
            with processes.together():
                if self.writer:
                    with writing(str(self.path), "Give a run.dir that can be written."):
                        self.path.mkdir(parents=True, exist_ok=True)
                        self._lock(stack)
                        self._check_config()
                        recover_directory(self.model)
                        if not self.going_on:
                            write_atomic(self.path / "config.yaml", to_yaml(self.config))
            self.going_on = bool(processes.gather(self.going_on)[0])
            with processes.together():
                self._check_shared()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def summary(self) -> dict[str, float] | None:
        """The summary of the finished run that is here; None while it is not finished."""
        path = self.path / "summary.json"
        return summary.read(path) if path.exists() and not self.going_on else None

    def go_on(self) -> None:
        """Notes that the finished run here is to be as long as the configuration says now."""
        if self.writer and self.going_on:
            write_atomic(self.path / UNFINISHED, "")
            write_atomic(self.path / "config.yaml", to_yaml(self.config))

    def write_summary(self, values: dict[str, float]) -> None:
        """Marks the run as finished."""
        if self.writer:
            write_json(self.path / "summary.json", finite(values))
            (self.path / UNFINISHED).unlink(missing_ok=True)

    def export(self, export: Callable[[Any, Path], None], params: Any) -> None:
        """Replaces model/ by what `export` writes; on any failure model/ stays as it was."""
        staged = self.path / ".model.new"
        if self.writer:
            shutil.rmtree(staged, ignore_errors=True)
        with writing(
            f"the model to {self.model}",
            "It is as it was before; make room and run the same command again: it goes on.",
        ):
            try:
                with processes.together():
                    export(params, staged)
                    if self.writer:
                        replace_directory(staged, self.model)
            except BaseException:
                if self.writer:
                    shutil.rmtree(staged, ignore_errors=True)
                raise

    def command(self) -> str:
        """What to type to go on with this run."""
        return f"jaxllm train --config {shlex.quote(str(self.path / 'config.yaml'))}"

    def _lock(self, stack: contextlib.ExitStack) -> None:
        # Unbuffered: of a full disk, closing the file would complain once more.
        file = stack.enter_context(open(self.path / LOCK, "a+b", buffering=0))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().decode(errors="replace").strip()
            raise InputError(
                f"{self.path} is in use by another run ({who}). Wait for it, stop it, or give "
                "another run.dir."
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s); start no second run in it", self.path, error)
            return
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"pid {os.getpid()} on {socket.gethostname()}, started {started}\n".encode())

    def _check_shared(self) -> None:
        """Refuses a directory that only looks the same: of each host's own disk."""
        file = self.path / "config.yaml"
        mine = to_yaml(self.config).encode()
        if not file.exists() or (not self.going_on and file.read_bytes() != mine):
            raise InputError(
                f"{self.path} is another directory in process {jax.process_index()} than in the "
                "first. Give a run.dir on storage that all hosts share."
            )

    def _check_config(self) -> None:
        config_file = self.path / "config.yaml"
        content = ("summary.json", "checkpoints", "model")
        held = [name for name in content if (self.path / name).exists()]
        held += [path.name for path in sorted(self.path.glob("seed_*"))]
        if not held:
            return
        if not config_file.exists():
            raise InputError(
                f"{self.path} holds {', '.join(held)} but no config.yaml: it is not the directory "
                "of a jaxllm run. Give another run.dir."
            )
        with reading(config_file, "the configuration of a jaxllm run", "give another run.dir"):
            changed = changes(config_file.read_text(encoding="utf-8"), to_yaml(self.config))
            unfinished = (self.path / UNFINISHED).exists()
            more = not unfinished and self._asks_for_more(changed)
        self.going_on = more or unfinished
        if more or not changed:
            return
        snapshots = any(self.snapshots.glob("step_*"))
        if not snapshots and held == ["checkpoints"]:
            return  # it stopped before its first snapshot: nothing of it is lost
        raise InputError(
            f"{self.path} holds a run of another config ({told(changed)}). To go on with that "
            f"run: {self.command()}; for a new run give another run.dir."
        )

    def _asks_for_more(self, changed: dict[str, tuple[Any, Any]]) -> bool:
        """Whether these changes ask a finished run for nothing but more epochs or steps."""
        path, train = self.path / "summary.json", self.config.train
        if not changed or not changed.keys() <= set(LENGTH) or not path.exists():
            return False
        if train.steps is not None:
            before = changed.get("train.steps", (None, None))[0] or 0
            return train.steps > max(before, summary.read(path)["train/steps"])
        return list(changed) == ["train.epochs"] and train.epochs > changed["train.epochs"][0]
