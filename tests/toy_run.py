"""A small noisy regression that runs through the real loop, in this process or as a program.

    python toy_run.py RUN_DIR '{"section.field": value, …}' [MOMENT]

MOMENT is where the program kills itself with SIGKILL, see `_arm`.
"""

import dataclasses
import functools
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.config.reading import Config
from jaxllm.data.loader import LoaderState
from jaxllm.errors import InputError
from jaxllm.runs import loop, snapshots
from jaxllm.runs.job import Job
from jaxllm.runtime import interrupt

EXAMPLES, BATCH, WIDTH = 24, 4, 8
STEPS_IN_EPOCH = EXAMPLES // BATCH
LENGTH = 10  # tokens in a row, one of them padding
SCHEDULE = optax.linear_schedule(0.1, 0.0, 100)
TX = optax.adamw(SCHEDULE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Batch:
    arrays: dict[str, jax.Array]
    real_tokens: int
    padded_tokens: int
    examples: int
    example_rows: np.ndarray
    next_state: LoaderState


class Loader:
    """Batches that are a function of (seed, position); `open_iterators` counts those not closed."""

    rows_per_batch = BATCH
    fingerprint = 7

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.open_iterators = 0
        rng = np.random.default_rng(7)
        self.x = rng.normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
        self.y = (self.x @ rng.normal(size=WIDTH)).astype(np.float32)

    def steps_in_epoch(self, epoch: int) -> int:
        return STEPS_IN_EPOCH

    def batches(self, start: LoaderState, *, prefetch: int = 2) -> Iterator[Batch]:
        self.open_iterators += 1
        try:
            epoch, step = start.epoch, start.step
            while True:
                order = np.random.default_rng((self.seed, epoch)).permutation(EXAMPLES)
                rows = order[step * BATCH : (step + 1) * BATCH]
                epoch, step = (epoch, step + 1) if step + 1 < STEPS_IN_EPOCH else (epoch + 1, 0)
                arrays = {"x": jnp.asarray(self.x[rows]), "y": jnp.asarray(self.y[rows])}
                yield Batch(
                    arrays,
                    real_tokens=BATCH * (LENGTH - 1),
                    padded_tokens=BATCH * LENGTH,
                    examples=BATCH,
                    example_rows=rows + 1,
                    next_state=LoaderState(epoch, step),
                )
        finally:
            self.open_iterators -= 1


@jax.jit
def _loss(params: Any, batch: Any) -> jax.Array:
    return jnp.sum((batch["x"] @ params["linear/w"] - batch["y"]) ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def _step(state: State, batch: Any) -> tuple[State, Any]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    value, grads = jax.value_and_grad(_loss)(state.params, batch)
    grads = jax.tree.map(lambda g: g / BATCH + 0.1 * jax.random.normal(key, g.shape), grads)
    updates, opt_state = TX.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": (value, jnp.float32(BATCH)),
        "grad_norm": (jnp.linalg.norm(grads["linear/w"]), jnp.ones(())),
    }
    return State(state.step + 1, params, opt_state, state.key), metrics


def build(
    config: Config,
    *,
    before_step: Callable[[int], None] = lambda step: None,
    scores: list[float] | None = None,
    poison: int | None = None,
    size: int = 1000,
) -> Job:
    """The job of a config.

    Args:
        before_step: called with the number of the step that is about to run.
        scores: the metric "score" of each evaluation, by epoch; default: minus the loss.
        poison: the step whose loss is NaN.
        size: of a parameter that only makes the snapshot bigger.
    """
    loader = Loader(config.train.seed)
    params = {"linear/w": jnp.zeros(WIDTH), "ballast": {"b": jnp.zeros(size)}}
    key = jax.random.key_data(jax.random.key(config.train.seed))
    state = State(jnp.int32(0), params, TX.init(params), key)

    at: list[int] = []

    def train_step(state: State, batch: Any) -> tuple[State, Any]:
        at[:] = [(at[0] if at else int(state.step)) + 1]
        before_step(at[0])
        state, metrics = _step(state, batch)
        if at[0] == poison:
            metrics["loss"] = (jnp.float32(jnp.nan), metrics["loss"][1])
        return state, metrics

    everything = {"x": jnp.asarray(loader.x), "y": jnp.asarray(loader.y)}
    done = [0]

    def evaluate(params: Any) -> dict[str, float]:
        value = float(_loss(params, everything)) / EXAMPLES
        done[0] += 1
        return {"loss": value, "score": -value if scores is None else scores[done[0] - 1]}

    def export(params: Any, directory: Path) -> None:
        directory.mkdir()
        np.savez(directory / "params.npz", **_flat(params))

    def report(params: Any, directory: Path, step: int) -> None:
        (directory / "report.txt").write_text(f"step {step}: {evaluate(params)['loss']!r}\n")

    shape = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    return Job(
        state=state,
        state_shape=shape,
        train_step=train_step,
        loader=loader,  # type: ignore[arg-type]
        total_steps=config.train.steps or round(config.train.epochs * STEPS_IN_EPOCH),
        learning_rate=lambda n: float(SCHEDULE(n)),
        evaluate=evaluate,
        metric=config.train.metric or "score",
        higher_is_better=True,
        export=export,
        report=report,
    )


def _flat(params: Any) -> dict[str, np.ndarray]:
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path).replace("/", "|"): np.asarray(x) for path, x in paths}


def make_config(directory: Path, **changes: Any) -> Config:
    """A quiet config in `directory`; `changes` are "section.field" = value."""
    config = Config()
    changes = {"run.dir": str(directory), "run.progress": False, "run.log_every": 4, **changes}
    changes = {"run.trackers": [], **changes}
    for key, value in changes.items():
        section, _, field = key.partition(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def last_state(directory: Path) -> dict[str, np.ndarray]:
    """Every array of the last snapshot of a run, and the loop's counts that are no times."""
    shape = build(make_config(directory)).state_shape
    with snapshots.Snapshots(
        directory / "checkpoints", keep=9, metric="score", higher_is_better=True
    ) as found:
        latest = found.latest()
        assert latest is not None
        state, position, extra = found.restore(latest, shape)
    progress = {k: v for k, v in extra["progress"].items() if not k.endswith("_seconds")}
    return {**_flat(state), "position": np.array(dataclasses.astuple(position)), **progress}


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment: str) -> Callable[[int], None]:
    """Sets where the program is killed: step:N, describe:N (a save whose arrays are written, before
    its rename), saving:N (somewhere in it), prune (an old snapshot half removed), export (between
    the two renames of the model), summary.

    Other moments: signal:N sends itself SIGTERM, disk:N cannot write large files from then on,
    wait:N says so and does nothing any more."""
    what, _, number = moment.partition(":")
    if what == "describe":
        describe = snapshots.Snapshots._describe

        def kill(self: snapshots.Snapshots) -> None:
            if self._saving and self._saving["step"] == int(number):
                _die()
            describe(self)

        snapshots.Snapshots._describe = kill  # type: ignore[method-assign]
    elif what == "saving":
        write = snapshots.Snapshots.save

        def save(self: snapshots.Snapshots, step: int, *rest: Any) -> None:
            write(self, step, *rest)
            if step == int(number):
                time.sleep(0.003)
                _die()

        snapshots.Snapshots.save = save  # type: ignore[method-assign]
    elif what == "prune":
        remove = shutil.rmtree

        def rmtree(path: Path, **options: Any) -> None:
            if Path(path).name.startswith(".step"):
                next(p for p in Path(path).rglob("*") if p.is_file()).unlink()
                _die()
            remove(path, **options)

        shutil.rmtree = rmtree  # type: ignore[assignment]
    elif what == "export":
        rename = os.rename

        def half(source: Any, target: Any) -> None:
            rename(source, target)
            if str(target).endswith(".model.old"):
                _die()

        os.rename = half
    elif what == "summary":
        loop.RunDir.write_summary = _die  # type: ignore[method-assign]

    def before_step(step: int) -> None:
        if what == "step" and step == int(number):
            _die()
        if what == "signal" and step == int(number):
            signal.raise_signal(signal.SIGTERM)
        if what == "disk" and step == int(number):
            while not Path(sys.argv[1], "checkpoints/step_00000006").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        if what == "wait" and step == int(number):
            print(f"step {step}", flush=True)
            signal.pause()

    return before_step


def main() -> int:
    directory, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    before_step = _arm(sys.argv[3] if len(sys.argv) > 3 else "")
    size = changes.pop("size", 1000)
    config = make_config(directory, **changes)
    try:
        loop.train(config, lambda c: build(c, before_step=before_step, size=size))
    except interrupt.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    except InputError as error:
        print(f"jaxllm: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
