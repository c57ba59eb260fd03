"""Three of the commands as functions of Python: `jaxllm.train`, `evaluate` and `load`."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from jaxllm.config.fields import Config
from jaxllm.config.reading import changed, from_yaml
from jaxllm.errors import InputError
from jaxllm.prediction.loaded import LoadedModel
from jaxllm.runs import loop
from jaxllm.runtime import compile_cache, cpu_guard, processes
from jaxllm.tasks import evaluate as evaluation
from jaxllm.tasks.build import build
from jaxllm.tasks.registry import TASKS


def train(
    config: Config | str | PathLike[str] | None = None, /, **changes: Mapping[str, Any] | Any
) -> dict[str, float]:
    """Trains as `jaxllm train` does, and returns what it writes into summary.json.

    A run that was stopped goes on, and a finished one is left as it is, as on the command line.

        jaxllm.train("configs/quickstart.yaml", run={"dir": "runs/a"}, train={"steps": 10})

    Args:
        config: a configuration or the path of its YAML file; None = every field's default.
        changes: sections with the fields to change, or `**{"section.field": value}`.

    Raises:
        InputError: something that was given cannot be used.
        RunError: a loss was not finite.
        Interrupted: SIGTERM or Ctrl-C; the state is saved, and the same call goes on.
    """
    options = _configuration(config, changes)
    data = options.data
    if not data.train and data.dataset is None and data.corpus is None:
        raise InputError("data.train: found no file, expected training files, or data.dataset")
    with processes.joined(options.mesh.processes):
        return loop.train(options, build)


def evaluate(
    config: Config | str | PathLike[str] | None = None, /, **changes: Mapping[str, Any] | Any
) -> dict[str, float]:
    """Judges the saved model at `model.path` on the dev part, as `jaxllm evaluate` does.

    Writes the report and the predictions into `<run.dir>/evaluate`, and returns the metrics.
    Arguments are those of `train`.

    Raises:
        InputError: no model, no dev part, or something else that cannot be used.
    """
    options = _configuration(config, changes)
    with processes.joined(options.mesh.processes):
        return evaluation.evaluate(options)


def load(path: str | PathLike[str], *, batch_size: int = 32, dtype: Any = "float32") -> LoadedModel:
    """A saved model that answers rows of text, on all devices of this host.

    `model(rows)` gives what `jaxllm predict` gives for these rows, `model.encode(texts)` vectors:
    see `LoadedModel`. Compiled programs are kept in the user's cache, as those of the commands.

    Args:
        path: a directory, a Hub id or package:NAME/sub/dir with a model of a task that
            `jaxllm predict` knows.
        batch_size: rows of a batch; rounded up to a multiple of the devices.
        dtype: of the computation, by name or as a type; parameters are float32.

    Raises:
        InputError: no model there, one without the head of its task, an argument out of range.
    """
    compile_cache.enable()
    cpu_guard.announce()
    return LoadedModel.load(path, batch_size, TASKS, dtype=dtype)


def _configuration(
    config: Config | str | PathLike[str] | None, changes: Mapping[str, Any]
) -> Config:
    if config is None:
        config = Config()
    elif not isinstance(config, Config):
        if not isinstance(config, str | PathLike):
            raise InputError(
                f"found {type(config).__name__} as the configuration, expected a Config or the "
                "path of a YAML file; give fields as sections: data={'train': ['a.csv']}"
            )
        config = from_yaml(config)
    return changed(config, changes)
