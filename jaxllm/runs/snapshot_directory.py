"""The directory of a run's snapshots: those that are whole, one being written, leftovers."""

import os
import re
import shutil
from pathlib import Path

from jaxllm.errors import InputError
from jaxllm.files import writing
from jaxllm.runs.snapshot_contents import ABOUT

_STEP = re.compile(r"step_(\d{8,})")
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a snapshot that is being written
_DELETED = re.compile(r"\.step_\d+\.deleted")


class SnapshotDirectory:
    """Made when missing; `root` is absolute, since Orbax refuses relative paths."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        with writing(str(self.root), "Move it away, or give another run.dir."):
            self.root.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Of the whole snapshots, in order; InputError where something else lies there."""
        found = []
        for entry in sorted(self.root.iterdir()):
            if entry.name.startswith(".") or _TEMPORARY in entry.name:
                continue
            match = _STEP.fullmatch(entry.name)
            if match is None or not (entry / ABOUT).exists():
                raise InputError(
                    f"{self.root} holds {entry.name}, which is not a whole jaxllm snapshot "
                    f"(a directory step_<number> with {ABOUT}). Move it away, or give another "
                    "run.dir."
                )
            found.append(int(match[1]))
        return found

    def being_written(self, step: int) -> Path:
        """Where the arrays of a step are until Orbax' final rename."""
        (found,) = (p for p in self.root.iterdir() if p.name.startswith(self.path(step).name))
        return found

    def remove(self, step: int) -> None:
        """Unless somebody has deleted it already."""
        if self.path(step).exists():
            # Renamed first: a crash during the removal must not leave half a snapshot.
            trash = self.root / f".{self.path(step).name}.deleted"
            os.rename(self.path(step), trash)
            shutil.rmtree(trash, ignore_errors=True)

    def remove_leftovers(self) -> bool:
        """Removes what was half written or half deleted; whether some was there."""
        names = [entry.name for entry in self.root.iterdir()]
        names = [name for name in names if _TEMPORARY in name or _DELETED.fullmatch(name)]
        for name in names:
            shutil.rmtree(self.root / name, ignore_errors=True)
        return bool(names)
