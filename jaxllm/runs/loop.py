"""The loop: resume, step, log, evaluate, save. The only one."""

import dataclasses
import logging
import shlex
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from jaxllm.config.reading import Config, to_yaml
from jaxllm.errors import InputError
from jaxllm.runs import hub_upload, resume, summary, trackers
from jaxllm.runs.directory import RunDir
from jaxllm.runs.job import Job
from jaxllm.runs.log import METRICS, RunLog, read_records
from jaxllm.runs.meter import RunError, StepMeter, epochs
from jaxllm.runs.progress import Progress
from jaxllm.runs.snapshots import DamagedError, Snapshots
from jaxllm.runs.step_trace import StepTrace
from jaxllm.runtime import processes
from jaxllm.runtime.interrupt import Interrupted, StopRequest

if TYPE_CHECKING:
    from jaxllm.data.loader import LoaderState

__all__ = ["Interrupted", "Job", "RunError", "run", "train"]

logger = logging.getLogger("jaxllm.runs.loop")


def train(config: Config, build: Callable[[Config], Job]) -> dict[str, float]:
    """Trains as `config` says, once or once per seed of `run.seeds`, and returns the summary.

    Takes up a run that was stopped, and leaves a finished one as it is, unless `config` asks for
    more epochs or steps: then it goes on from its last snapshot. Several seeds each have their
    run in ``run.dir/seed_<n>``; the summary is then their mean, and ``<key>_std`` the sample
    standard deviation.

    Raises:
        InputError: something the user gave cannot be used.
        RunError: a loss was not finite.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    with RunDir(config) as directory:
        if not config.run.seeds:
            return _run(build, config, directory)
        directory.go_on()
        summaries = []
        for seed in config.run.seeds:
            place = str(directory.path / f"seed_{seed}")
            one = dataclasses.replace(
                config,
                train=dataclasses.replace(config.train, seed=seed),
                run=dataclasses.replace(config.run, dir=place, seeds=None),
            )
            try:
                with RunDir(one) as seed_directory:
                    summaries.append(_run(build, one, seed_directory))
            except Interrupted as stop:
                message = f"{stop} (this seed; all of them: {directory.command()})"
                raise Interrupted(stop.signum, message) from None
        mean = summary.over_seeds(summaries)
        directory.write_summary(mean)
        logger.info("%d seeds: %s", len(summaries), summary.told(mean))
        return mean


def run(job: Job, config: Config) -> dict[str, float]:
    """Trains `job` in `config.run.dir` and returns the summary; errors as in `train`."""
    with RunDir(config) as directory:
        return _run(lambda _: job, config, directory)


def _run(build: Callable[[Config], Job], config: Config, directory: RunDir) -> dict[str, float]:
    began = time.perf_counter()
    repo = config.run.push_to_hub
    with processes.together():
        if directory.writer and repo is not None:
            hub_upload.prepare(repo)
    result = directory.summary()
    if result is None:
        result = _train(build, config, directory, began)
    else:
        logger.info(
            "%s holds this run, finished; its summary.json is the result. It goes on with a larger "
            "--train.epochs or --train.steps",
            directory.path,
        )
    with processes.together():
        if directory.writer and repo is not None:
            hub_upload.upload(repo, directory.model)
    return result


def _train(
    build: Callable[[Config], Job], config: Config, directory: RunDir, began: float
) -> dict[str, float]:
    with processes.together():
        if directory.writer:
            trackers.check(config.run.trackers)
    job = build(config)
    profile = config.train.profile
    if profile is not None and profile[1] > job.total_steps:
        raise InputError(f"train.profile: found {profile}, but the run has {job.total_steps} steps")
    snapshots = Snapshots(
        directory.snapshots,
        keep=config.run.keep,
        metric=job.metric,
        higher_is_better=job.higher_is_better,
    )
    with snapshots:
        with StopRequest() as stop:
            state, position, progress = resume.start(job, config, directory, snapshots)
            directory.go_on()
            began -= progress.wall_seconds
            traced = StepTrace(profile if directory.writer else None, directory.path / "profile")
            with RunLog(directory, progress, job.total_steps) as log, traced as trace:
                meter = StepMeter(job, progress, log, snapshots, trace, config.run.log_every)
                run = _Run(job, config, directory, snapshots, log, stop, progress, meter, began)
                state = _steps(run, state, position)
        return _finish(run, state)


@dataclasses.dataclass
class _Run:
    """The parts of one run."""

    job: Job
    config: Config
    directory: RunDir
    snapshots: Snapshots
    log: RunLog
    stop: StopRequest
    progress: Progress
    meter: StepMeter
    began: float  # time.perf_counter() of a start that never stopped


def _steps(run: _Run, state: Any, position: "LoaderState") -> Any:
    """Steps until the end, an early stop, or a signal; returns the last state."""
    job, train, meter = run.job, run.config.train, run.meter
    step = run.progress.step
    with closing(job.loader.batches(position)) as batches:  # type: ignore[type-var]
        while True:
            ended = step >= job.total_steps
            signum = run.stop.received(step, run.config.run.log_every)
            evaluate = ended or _due(train.eval_every, step, position)
            save = evaluate if train.save_every == 0 else _due(train.save_every, step, position)
            if evaluate or save or signum:
                meter.drain()
                meter.clock.stop()
                improved = False
                if evaluate and run.progress.evaluated < step:
                    improved = _evaluate(run, state.params, position)
                if not ended and 0 < train.patience <= run.progress.stale:
                    logger.info("Early stop: %s no better in %s", job.metric, _stale(run.progress))
                    ended = True
                if step > 0 and (save or improved or ended or signum):
                    _save(run, step, state, position)
            if signum:
                raise _interrupted(run, signum)
            if ended:
                return state
            meter.clock.start()
            batch = next(batches)
            state = meter.step(state, batch)
            step, position = step + 1, batch.next_state


def _due(every: int, step: int, position: "LoaderState") -> bool:
    """Whether something is to be done after `step`; every=0 is at the end of each epoch."""
    if step == 0:
        return False
    return position.step == 0 if every == 0 else step % every == 0


def _stale(progress: Progress) -> str:
    """Since when no evaluation was the best."""
    evaluations = "1 evaluation" if progress.stale == 1 else f"{progress.stale} evaluations"
    best = progress.best_step
    return f"{evaluations}, {f'best at step {best}' if best else 'and never a number'}"


def _evaluate(run: _Run, params: Any, position: "LoaderState") -> bool:
    """Evaluates, logs, exports the model when it is the best; whether it is."""
    job, progress = run.job, run.progress
    metrics = {name: float(x) for name, x in job.evaluate(params).items()}
    if not metrics:
        progress.evaluated = progress.step
        return False
    if job.metric not in metrics:
        raise InputError(
            f"train.metric: {job.metric!r} is none of this task's; choose one of {sorted(metrics)}"
        )
    record = {"step": progress.step, "epoch": epochs(job, position)}
    record |= {f"eval/{name}": x for name, x in metrics.items()}
    improved = progress.judge(metrics, job.metric, job.higher_is_better)
    run.log.evaluation(record, job.metric, progress)
    if improved:
        run.directory.export(job.export, params)
    return improved


def _save(run: _Run, step: int, state: Any, position: "LoaderState") -> None:
    progress = run.progress
    progress.train_seconds = run.meter.clock.seconds
    progress.compile_seconds = run.meter.clock.compile_seconds
    progress.wall_seconds = time.perf_counter() - run.began
    extra = {
        "progress": dataclasses.asdict(progress),
        "config": to_yaml(run.config),
        "rows_per_batch": run.job.loader.rows_per_batch,
        "data": run.job.loader.fingerprint,
    }
    rated = progress.best_metrics if progress.best_step == step else None
    run.snapshots.save(step, state, position, extra, rated)


def _interrupted(run: _Run, signum: int) -> Interrupted:
    run.snapshots.wait()
    return Interrupted(
        signum,
        f"stopped after step {run.progress.step} of {run.job.total_steps}, and saved. To go on: "
        f"{run.directory.command()}",
    )


def _finish(run: _Run, state: Any) -> dict[str, float]:
    """Export, report, curves, and last the summary that marks the run as finished."""
    from jaxllm.runs import curves

    progress, job, directory = run.progress, run.job, run.directory
    run.snapshots.wait()
    best = progress.best_step
    params = state.params
    del state
    if best not in (0, progress.step):
        del params  # before the best ones are there beside them
        params = _best_params(run)
    if params is not None:
        if best == 0 or not directory.model.exists():
            directory.export(job.export, params)
        job.report(params, directory.path, best or progress.step)
    if directory.writer:
        curves.draw(read_records(directory.path / METRICS), directory.path, job.metric, best)
    wall_seconds = time.perf_counter() - run.began
    result = summary.of_run(progress, run.meter.clock, wall_seconds, job.peak_rate, job.trained)
    directory.write_summary(result)
    return result


def _best_params(run: _Run) -> Any:
    """The best parameters from their snapshot; None where only model/ still has them."""
    best, directory = run.progress.best_step, run.directory
    try:
        return run.snapshots.restore_params(best, run.job.state_shape)
    except DamagedError as error:
        if not directory.model.exists():
            raise
        logger.warning(
            "%s, so there is no report. Nothing else is lost: %s holds the model of step %d, and "
            "this reports on it: jaxllm evaluate --config %s --model.path %s",
            *(error.what, directory.model, best),
            *(shlex.quote(str(p)) for p in (directory.path / "config.yaml", directory.model)),
        )
        return None
