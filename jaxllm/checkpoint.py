"""Checkpoints, through Orbax: asynchronous, atomic, verified, the last few and the best.

A checkpoint is ``DIR/step_00000120/``: Orbax's arrays (``params/`` and ``state/``, the rest of
the train state) and ``jaxllm.json``: the step, the loader's position, what the loop remembers, the
shape of every array, and size and CRC-32 of every file. All of it is written under a temporary name
and renamed when complete, so a directory with that name is a whole checkpoint. The CRC is checked
before anything is read: Orbax itself does not notice a changed byte in an array.
"""

import logging
import math
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxllm import processes
from jaxllm.checkpoint_contents import (
    ABOUT,
    FORMAT,
    describe_leaf,
    find_damage,
    join,
    leaves,
    list_files,
    read_about,
    sealed,
    split,
)
from jaxllm.errors import InputError
from jaxllm.files import check_room, disk_problem, write_atomic

if TYPE_CHECKING:
    from jaxllm.data.loader import LoaderState

logger = logging.getLogger("jaxllm.checkpoint")

_STEP = re.compile(r"step_(\d{8,})")
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written


class DamagedError(InputError):
    """A checkpoint that cannot be read: `what` is wrong with it, and a way out."""

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(f"{what}. {way_out}")
        self.what = what


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: made when missing. Shared by all processes of a run, owned by this run alone.
        keep: how many of the latest stay, besides the best.
        metric: the name in `save`'s `metrics` that ranks them; one without it is never the best.
        higher_is_better: the direction of `metric`.

    Raises:
        InputError: the directory holds something else, or a damaged checkpoint.
    """

    def __init__(self, directory: Path, *, keep: int, metric: str, higher_is_better: bool) -> None:
        import orbax.checkpoint as ocp

        _quiet_orbax()
        self.directory = Path(directory).absolute()  # Orbax refuses relative paths
        self._keep, self._metric = max(1, keep), metric
        self._sign = 1.0 if higher_is_better else -1.0
        self._writer = jax.process_index() == 0
        self._saving: dict[str, Any] | None = None  # the description of the save in flight
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._writer:
            self._remove_leftovers()
        self._scores = {step: self._score(self._about(step)["metrics"]) for step in self._find()}
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(
                # A directory that cannot be made in the background leaves threads of Orbax waiting
                # for it until a timeout, at the exit of the process too.
                create_directories_asynchronously=False,
                post_finalization_callback=self._describe,
            ),
        )

    def path(self, step: int) -> Path:
        """The directory of a step's checkpoint."""
        return self.directory / f"step_{step:08d}"

    def latest(self) -> int | None:
        """The last step that was saved (its writing may still go on), or None."""
        return max(self._scores, default=None)

    def best(self) -> int | None:
        """The step with the best metric, the earliest of equals; None when none has one."""
        rated = [step for step, score in self._scores.items() if score is not None]
        return min(rated, key=lambda step: (-(self._scores[step] or 0.0), step), default=None)

    def save(
        self,
        step: int,
        state: Any,
        loader_state: "LoaderState",
        extra: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts writing `state` and returns once its arrays are copied, so it may be donated.

        Waits for the save before it first. A step that is there already keeps its arrays and gets
        the new `extra` and `metrics`.

        Raises:
            InputError: this save or the one before could not be written; older ones are intact.
        """
        import orbax.checkpoint as ocp

        self.wait()
        shapes = {path: describe_leaf(x) for path, x in leaves(state)}
        about = {
            "format": FORMAT,
            "step": step,
            "loader": asdict(loader_state),
            "metrics": metrics,
            "extra": extra,
            "arrays": shapes,
        }
        if step in self._scores:
            if self._writer:
                files = read_about(self.path(step))["files"]
                write_atomic(self.path(step) / ABOUT, sealed(about, files))
            self._scores[step] = self._score(metrics)
            return
        params, rest = split(state)
        self._saving = about
        try:
            check_room(self.directory, sum(x.nbytes for x in jax.tree.leaves(state)))
            self._orbax.save(
                self.path(step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params), state=ocp.args.StandardSave(rest)
                ),
            )
        except Exception as error:
            self._failed(error)
        self._scores[step] = self._score(metrics)

    def extra(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state, read before any array is.

        Raises:
            DamagedError: it is not what was written.
        """
        with processes.together():
            return self._about(step)["extra"]

    def restore(self, step: int, state_shape: Any) -> tuple[Any, "LoaderState", dict[str, Any]]:
        """(state, loader state, extra) of a step.

        `state_shape` is the state's tree of `jax.ShapeDtypeStruct`; arrays land in its shardings,
        which may be of another mesh than the one that saved.

        Raises:
            DamagedError: it is not what was written.
            InputError: it is of another model.
        """
        from jaxllm.data.loader import LoaderState

        with processes.together():
            about = self._verified(step, state_shape)
        params, rest = split(state_shape)
        found = self._read(step, {"params": params, "state": rest})
        state = join(state_shape, found["params"], found["state"])
        return state, LoaderState(**about["loader"]), about["extra"]

    def restore_params(self, step: int, state_shape: Any) -> Any:
        """Only the parameters of a step; arguments and errors as in `restore`."""
        with processes.together():
            self._verified(step, state_shape)
        params, _ = split(state_shape)
        return join(state_shape.params, self._read(step, {"params": params})["params"], {})

    def wait(self) -> None:
        """Returns when the save in flight is on disk, and removes the checkpoints it replaces.

        Raises:
            InputError: it could not be written; older ones are intact.
        """
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._failed(error)
        self._saving = None
        self._prune()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except InputError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # the exception that is on its way came first

    # -- reading ---------------------------------------------------------------------------------

    def _find(self) -> list[int]:
        found = []
        for entry in sorted(self.directory.iterdir()):
            if entry.name.startswith(".") or _TEMPORARY in entry.name:
                continue
            match = _STEP.fullmatch(entry.name)
            if match is None or not (entry / ABOUT).exists():
                raise InputError(
                    f"{self.directory} holds {entry.name}, which is not a whole jaxllm checkpoint "
                    f"(a directory step_<number> with {ABOUT}). Move it away, or give another "
                    "run.dir."
                )
            found.append(int(match[1]))
        return found

    def _about(self, step: int) -> dict[str, Any]:
        directory = self.path(step)
        try:
            return read_about(directory)["about"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(step, f"{ABOUT}: {error}") from error

    def _damaged(self, step: int, what: str) -> "DamagedError":
        others = [s for s in self._find() if s != step]
        then = f"goes on from step {others[-1]}" if others else "starts anew"
        return DamagedError(
            f"{self.path(step)} is damaged ({what})",
            f"Delete that directory and run the same command again: the run then {then}.",
        )

    def _verified(self, step: int, state_shape: Any) -> dict[str, Any]:
        about = self._about(step)
        wanted = {path: describe_leaf(x) for path, x in leaves(state_shape)}
        if wanted != about["arrays"]:
            path = min(
                path
                for path in wanted.keys() | about["arrays"].keys()
                if wanted.get(path) != about["arrays"].get(path)
            )
            raise InputError(
                f"{self.path(step)} is of another model or optimizer: {path} is "
                f"{about['arrays'].get(path, 'absent')} there and {wanted.get(path, 'absent')} "
                "here. Give another run.dir, or the config that wrote it."
            )
        damage = find_damage(self.path(step)) if self._writer else None
        if damage is not None:
            raise self._damaged(step, damage)
        return about

    def _read(self, step: int, shapes: dict[str, Any]) -> Any:
        import orbax.checkpoint as ocp

        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        return self._orbax.restore(self.path(step), args=ocp.args.Composite(**args))

    def _score(self, metrics: dict[str, float] | None) -> float | None:
        value = (metrics or {}).get(self._metric)
        return None if value is None or math.isnan(value) else self._sign * value

    # -- writing ---------------------------------------------------------------------------------

    def _describe(self) -> None:
        """Adds jaxllm.json to the written arrays; Orbax calls it before its final rename."""
        assert self._saving is not None
        name = self.path(self._saving["step"]).name
        (directory,) = (p for p in self.directory.iterdir() if p.name.startswith(name))
        write_atomic(directory / ABOUT, sealed(self._saving, list_files(directory)))

    def _failed(self, error: Exception) -> None:
        """Removes what was half written and raises."""
        step = self._saving["step"] if self._saving else -1
        self._saving = None
        self._scores.pop(step, None)
        if self._writer:
            self._remove_leftovers()
            for _ in range(20):  # writes begun beside the failed one may still go on
                if not any(_TEMPORARY in entry.name for entry in self.directory.iterdir()):
                    break
                time.sleep(0.05)
                self._remove_leftovers()
        problem = disk_problem(error)
        if problem is None:
            raise error
        last = self.latest()
        intact = "there is none before it" if last is None else f"that of step {last} is intact"
        raise InputError(
            f"could not write the checkpoint of step {step} in {self.directory}: {problem}; "
            f"{intact}. Make room there and run the same command again: it goes on from there."
        ) from error

    def _prune(self) -> None:
        kept = {*sorted(self._scores)[-self._keep :], self.best()}
        for step in [step for step in self._scores if step not in kept]:
            del self._scores[step]
            if self._writer and self.path(step).exists():  # or somebody has deleted it already
                # Renamed first: a crash during the removal must not leave half a checkpoint.
                trash = self.directory / f".{self.path(step).name}.deleted"
                os.rename(self.path(step), trash)
                shutil.rmtree(trash, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for entry in self.directory.iterdir():
            if _TEMPORARY in entry.name or re.fullmatch(r"\.step_\d+\.deleted", entry.name):
                shutil.rmtree(entry, ignore_errors=True)


class _RaisedLater(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "in background save thread" not in record.getMessage()


def _quiet_orbax() -> None:
    """Orbax logs a background failure with its traceback; `wait` raises the same failure."""
    absl = logging.getLogger("absl")
    if not any(isinstance(f, _RaisedLater) for f in absl.filters):
        absl.addFilter(_RaisedLater())
