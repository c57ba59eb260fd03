"""Snapshots, through Orbax: asynchronous, atomic, verified, the last few and the best.

A snapshot is ``DIR/step_00000120/``: Orbax's arrays (``params/`` and ``state/``, the rest of
the train state) and ``jaxllm.json``: the step, the loader's position, what the loop remembers, the
shape of every array, and size and CRC-32 of every file. All of it is written under a temporary name
and renamed when complete, so a directory with that name is a whole snapshot. The CRC is checked
before anything is read: Orbax itself does not notice a changed byte in an array.
"""

import logging
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxllm.errors import InputError
from jaxllm.files import check_room, disk_problem, write_atomic
from jaxllm.runs.snapshot_contents import (
    ABOUT,
    FORMAT,
    describe,
    find_damage,
    join,
    list_files,
    read_about,
    sealed,
    split,
)
from jaxllm.runs.snapshot_directory import SnapshotDirectory
from jaxllm.runs.snapshot_noise import keep_quiet
from jaxllm.runs.snapshot_ranking import Ranking
from jaxllm.runtime import processes

if TYPE_CHECKING:
    from jaxllm.data.loader import LoaderState

logger = logging.getLogger("jaxllm.runs.snapshots")


class DamagedError(InputError):
    """A snapshot that cannot be read: `what` is wrong with it, and a way out."""

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(f"{what}. {way_out}")
        self.what = what


class Snapshots:
    """The snapshots of one run.

    Args:
        directory: made when missing. Shared by all processes of a run, owned by this run alone.
        keep, metric, higher_is_better: which stay, see `Ranking`; `metric` is one of `save`'s.

    Raises:
        InputError: the directory holds something else, or a damaged snapshot.
    """

    def __init__(self, directory: Path, *, keep: int, metric: str, higher_is_better: bool) -> None:
        self._store = SnapshotDirectory(directory)
        self.directory = self._store.root
        self._ranking = Ranking(keep=keep, metric=metric, higher_is_better=higher_is_better)
        self._writer = jax.process_index() == 0
        self._saving: dict[str, Any] | None = None  # the description of the save in flight
        if self._writer:
            self._store.remove_leftovers()
        for step in self._store.steps():
            self._ranking.add(step, self._about(step)["metrics"])

    @cached_property
    def _orbax(self) -> Any:
        """Made when it is needed: its import would come before the first step."""
        import orbax.checkpoint as ocp

        keep_quiet()
        return ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(
                # A directory that cannot be made in the background leaves threads of Orbax waiting
                # for it until a timeout, at the exit of the process too.
                create_directories_asynchronously=False,
                post_finalization_callback=self._describe,
            ),
        )

    def path(self, step: int) -> Path:
        """The directory of a step's snapshot."""
        return self._store.path(step)

    def latest(self) -> int | None:
        """The last step that was saved (its writing may still go on), or None."""
        return self._ranking.latest()

    def best(self) -> int | None:
        """The step with the best metric, the earliest of equals; None when none has one."""
        return self._ranking.best()

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
        about = {
            "format": FORMAT,
            "step": step,
            "loader": asdict(loader_state),
            "metrics": metrics,
            "extra": extra,
            "arrays": describe(state),
        }
        if step in self._ranking:
            if self._writer:
                files = read_about(self.path(step))["files"]
                write_atomic(self.path(step) / ABOUT, sealed(about, files))
            self._ranking.add(step, metrics)
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
        self._ranking.add(step, metrics)

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
        """Returns when the save in flight is on disk, and removes the snapshots it replaces.

        Raises:
            InputError: it could not be written; older ones are intact.
        """
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            if self._saving is not None:  # else it is of a save that has failed before
                self._failed(error)
        self._saving = None
        self._prune()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except InputError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # the exception that is on its way came first

    # -- reading ---------------------------------------------------------------------------------

    def _about(self, step: int) -> dict[str, Any]:
        directory = self.path(step)
        try:
            return read_about(directory)["about"]
        except Exception as error:  # a damaged file may be of any type and any depth
            raise self._damaged(step, f"{ABOUT}: {type(error).__name__}: {error}") from error

    def _damaged(self, step: int, what: str) -> "DamagedError":
        others = [s for s in self._store.steps() if s != step]
        then = f"goes on from step {others[-1]}" if others else "starts anew"
        return DamagedError(
            f"{self.path(step)} is damaged ({what})",
            f"Delete that directory and run the same command again: the run then {then}.",
        )

    def _verified(self, step: int, state_shape: Any) -> dict[str, Any]:
        about = self._about(step)
        found, wanted = about["arrays"], describe(state_shape)
        differ = [p for p in wanted.keys() | found.keys() if wanted.get(p) != found.get(p)]
        if differ:
            path = min(differ)
            raise InputError(
                f"{self.path(step)} is of another model or optimizer: {path} is "
                f"{found.get(path, 'absent')} there and {wanted.get(path, 'absent')} here. "
                "Give another run.dir, or the config that wrote it."
            )
        damage = find_damage(self.path(step)) if self._writer else None
        if damage is not None:
            raise self._damaged(step, damage)
        return about

    def _read(self, step: int, shapes: dict[str, Any]) -> Any:
        import orbax.checkpoint as ocp

        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        return self._orbax.restore(self.path(step), args=ocp.args.Composite(**args))

    # -- writing ---------------------------------------------------------------------------------

    def _describe(self) -> None:
        """Adds jaxllm.json to the written arrays; Orbax calls it before its final rename."""
        assert self._saving is not None
        directory = self._store.being_written(self._saving["step"])
        write_atomic(directory / ABOUT, sealed(self._saving, list_files(directory)))

    def _failed(self, error: Exception) -> None:
        """Removes what was half written and raises."""
        step = self._saving["step"] if self._saving else -1
        self._saving = None
        self._ranking.remove(step)
        if self._writer:
            for _ in range(20):  # writes begun beside the failed one may still go on
                if not self._store.remove_leftovers():
                    break
                time.sleep(0.05)
        problem = disk_problem(error)
        if problem is None:
            raise error
        last = self.latest()
        intact = "there is none before it" if last is None else f"that of step {last} is intact"
        raise InputError(
            f"could not write the snapshot of step {step} in {self.directory}: {problem}; "
            f"{intact}. Make room there and run the same command again: it goes on from there."
        ) from error

    def _prune(self) -> None:
        for step in self._ranking.superseded():
            self._ranking.remove(step)
            if self._writer:
                self._store.remove(step)
