"""What a task brings to a run. `build` makes the run of it, the same way for every task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

from jaxllm.config.fields import Config
from jaxllm.data.loader import TrainExamples
from jaxllm.errors import InputError
from jaxllm.models import Apply
from jaxllm.pretrained.storage import StoredModel
from jaxllm.training.objectives import Batch, Objective

SMALLER_IS_BETTER = {"loss", "mse", "mae", "perplexity"}


class Evaluator(Protocol):
    """Judges parameters on the dev part, every example once."""

    def metrics(self, params: Any) -> dict[str, float]:
        """Metric values by flat names, "loss" among them."""

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes the predictions; returns the metrics and the report's text, of whole lines."""


@dataclass(frozen=True)
class Task:
    """A task on the data and the model of one configuration.

    Attributes:
        model: its module and its weights.
        train: what to train on; None for a saved model that is only judged.
        reads_word_table_only: the word embedding is used for nothing but to look up the tokens of
            `train`, so rows of other tokens have no gradient (not so with a tied decoder).
        objective: the loss of a training batch for the model's pure function.
        evaluator: judges a model's pure function on a mesh; None without a dev part.
        metric: chooses the best model.
        save_extras: writes beside the exported weights what prediction needs.
        whole_batch: see `train.make_train_step`.
    """

    model: StoredModel
    train: TrainExamples | None
    reads_word_table_only: bool
    objective: Callable[[Apply], Objective]
    evaluator: Callable[[Apply, Mesh], Evaluator] | None
    metric: str
    save_extras: Callable[[Path], None]
    whole_batch: Callable[[Batch], Batch] = lambda batch: batch


def chosen_metric(config: Config, known: Iterable[str], default: str, why: str = "") -> str:
    """The metric that chooses the best model: train.metric, else `default`.

    Raises:
        InputError: the evaluation does not give it; `known` is what it gives, `why` what that
            depends on.
    """
    metric, known = config.train.metric or default, list(dict.fromkeys(known))
    if metric not in known:
        raise InputError(f"train.metric: found {metric!r}, expected one of {', '.join(known)}{why}")
    return metric


class Prepare(Protocol):
    """Reads a configuration's data and fits the model's head to them.

    `saved`: the config of a saved model that is to be judged as it is; then nothing is read to
    train on. Raises InputError for data, labels or settings that do not fit each other.
    """

    def __call__(self, config: Any, tokenizer: Any, *, saved: Any = None) -> Task: ...
