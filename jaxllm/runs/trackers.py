"""Where else the numbers of a run are shown: TensorBoard's event files, and wandb."""

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from jaxllm.config.fields import Config
from jaxllm.errors import InputError
from jaxllm.files import reading, write_atomic, writing
from jaxllm.runtime import no_torch

Add = Callable[[dict[str, float], int], None]  # values by name, and the step they are of


def check(names: Sequence[str]) -> None:
    """Raises InputError where one of the trackers `names` cannot be used: not installed, no login.

    Called before anything is read or trained.
    """
    if "wandb" not in names:
        return
    try:
        with no_torch.hidden():
            # By names: where it is not installed, a directory wandb/ that it left imports as well.
            from wandb import login, setup
        # Without a key wandb.init would ask for one at the terminal.
        ready = setup().settings.mode != "online" or login(prompt=False)
    except (ImportError, AttributeError, TypeError) as error:  # the latter of an older version
        raise InputError(
            f"run.trackers: found wandb, which cannot be used ({error}); install it with pip "
            "install 'wandb>=0.31', or take it out of run.trackers"
        ) from None
    if not ready:
        raise InputError(
            "run.trackers: found wandb, but there is no login; run `wandb login`, or set "
            "WANDB_MODE=offline to keep the numbers here"
        )


@contextmanager
def tensorboard(directory: Path, config: Config, step: int) -> Iterator[Add]:
    """Event files in ``directory/tensorboard``; values after `step` of an earlier start go."""
    with no_torch.hidden():
        from tensorboardX import SummaryWriter

    with writing(str(directory / "tensorboard"), "Make room and run the same command again."):
        writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
    events = writer.file_writer.event_writer

    def add(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield add
    finally:
        with writing(str(directory / "tensorboard"), "Make room and run the same command again."):
            try:
                writer.close()
            except OSError:
                # Its thread would wait on, and it would try again at exit: both with a traceback.
                events._worker.stop()
                events._closed = True
                with suppress(OSError):
                    events._ev_writer.close()
                raise


@contextmanager
def wandb(directory: Path, config: Config, step: int) -> Iterator[Add]:
    """A run of wandb, the same one at each start of this run; its files are in ``directory/wandb``.

    Project and name are those of WANDB_PROJECT and WANDB_NAME, else jaxllm and run.dir.

    Raises:
        InputError: the server cannot be reached or refuses the run.
    """
    with no_torch.hidden():
        import wandb

    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxllm"),
            name=os.environ.get("WANDB_NAME", config.run.dir),
            id=_wandb_id(directory / "wandb" / "run_id"),
            resume="allow",
            dir=str(directory),
            config=asdict(config),
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"run.trackers: wandb could not begin its run ({error}); set WANDB_MODE=offline to "
            "keep the numbers here, or take wandb out of run.trackers"
        ) from error
    with run:
        # wandb drops values at steps below its own count, and a run that goes on from its last
        # snapshot gives some once more; as an axis any number will do.
        run.define_metric("*", step_metric="step")
        yield lambda values, step: run.log({**values, "step": step})


def _wandb_id(file: Path) -> str:
    """The id in `file`, which is made where it is missing."""
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, secrets.token_hex(8))
    with reading(file, "the id of a wandb run", "delete it, and wandb begins another run"):
        name = file.read_text(encoding="utf-8")
        if not re.fullmatch(r"[\w-]{1,64}", name):
            raise ValueError(f"found {name[:80]!r}")
    return name


TRACKERS = {"tensorboard": tensorboard, "wandb": wandb}
