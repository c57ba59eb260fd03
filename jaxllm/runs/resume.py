"""Where a run begins: at its last snapshot, or with the state of its job."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.config.reading import Config, to_yaml
from jaxllm.errors import InputError
from jaxllm.runs.directory import LENGTH, RunDir, changes, told
from jaxllm.runs.job import Job
from jaxllm.runs.progress import Progress
from jaxllm.runs.snapshots import Snapshots
from jaxllm.training.optim import learning_rate_schedule

if TYPE_CHECKING:
    from jaxllm.data.loader import LoaderState

logger = logging.getLogger("jaxllm.runs.resume")


def start(
    job: Job, config: Config, directory: RunDir, snapshots: Snapshots
) -> tuple[Any, "LoaderState", Progress]:
    """The state, the loader's position and the progress to go on from; takes `job.state` away.

    Raises:
        InputError: the last snapshot is damaged, or of another configuration, mesh or data; or a
            finished run is to go on and has no snapshot.
    """
    from jaxllm.data.loader import LoaderState

    state, job.state = job.state, None
    latest = snapshots.latest()
    if latest is None:
        if directory.going_on:
            raise InputError(
                f"{directory.path} holds a finished run, but no snapshot of it to go on from. "
                "Restore its checkpoints/, or give another run.dir."
            )
        return state, LoaderState(epoch=0, step=0), Progress()
    where, extra = snapshots.path(latest), snapshots.extra(latest)
    changed = changes(extra["config"], to_yaml(config))
    longer = directory.going_on and bool(changed) and changed.keys() <= set(LENGTH)
    if changed and not longer:
        raise InputError(
            f"{where} is of a run of another config ({told(changed)}). Give another run.dir."
        )
    if extra["rows_per_batch"] != job.loader.rows_per_batch:
        raise InputError(
            f"{where} was written with batches of {extra['rows_per_batch']} rows, this mesh needs "
            f"{job.loader.rows_per_batch}. Choose mesh.data and mesh.fsdp so that their product "
            f"divides {extra['rows_per_batch']}, or give another run.dir."
        )
    if extra["data"] != job.loader.fingerprint:
        raise InputError(
            f"{where} is of a run on other data: the training files or the tokenizer have changed. "
            "Restore them, or give another run.dir."
        )
    del state  # before the restored one takes its place
    state, position, _ = snapshots.restore(latest, job.state_shape)
    logger.info("going on after step %d of %d, from %s", latest, job.total_steps, where)
    if longer:
        _tell_schedule(job, config, latest)
    return state, position, Progress(**extra["progress"])


def _tell_schedule(job: Job, config: Config, done: int) -> None:
    """Warns where the length of the run changes the learning rate of the steps to come."""
    total = job.total_steps
    steps = np.arange(done, total)
    before, now = (learning_rate_schedule(config.optimizer, n)(steps) for n in (done, total))
    if not np.array_equal(before, now):
        logger.warning(
            "optimizer.schedule=%s depends on the length of the run, which was %d steps and is %d "
            "now: the learning rate goes on at %.3g in step %d and ends at %.3g. A run of %d steps "
            "from the start has other rates in its first %d steps",
            *(config.optimizer.schedule, done, total),
            *(job.learning_rate(done), done + 1, job.learning_rate(total - 1), total, done),
        )
