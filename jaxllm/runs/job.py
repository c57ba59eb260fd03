"""What a task hands to the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jaxllm.data.loader import TrainLoader

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


@dataclass
class Job:
    """A model, its data and what the task does with them.

    Attributes:
        state: a TrainState; `loop.run` takes it away, to have room for a restored one.
        state_shape: its tree of `jax.ShapeDtypeStruct` with shardings.
        train_step: jitted, donates the state; metrics are (sum, weight), "loss" among them.
        loader: gives the batches from any position.
        total_steps: of the whole run.
        learning_rate: that of the step which comes after so many steps.
        evaluate: metric values of the parameters; {} where there is nothing to evaluate on.
        metric: which of them picks the best model.
        higher_is_better: the direction of `metric`.
        export: writes a model directory, which does not exist yet. Called in all processes.
        peak_rate: real tokens/s that would take all FLOP/s of the devices; None = not known.
        report: writes the final report, of parameters and the step they are of, into the run
            directory. Called in all processes.
        trained: (parameters that are trained, all parameters) of a model that is trained in part.
    """

    state: Any
    state_shape: Any
    train_step: Callable[[Any, dict[str, jax.Array]], tuple[Any, Metrics]]
    loader: "TrainLoader"
    total_steps: int
    learning_rate: Callable[[int], float]
    evaluate: Callable[[Any], dict[str, float]]
    metric: str
    higher_is_better: bool
    export: Callable[[Any, Path], None]
    report: Callable[[Any, Path, int], None]
    peak_rate: float | None = None
    trained: tuple[int, int] | None = None
