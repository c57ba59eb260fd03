"""Three of the commands as functions of Python: `jaxllm.train`, `evaluate` and `load`."""

from os import PathLike
from typing import Any

from jaxllm.prediction.loaded import LoadedModel
from jaxllm.runtime import compile_cache, cpu_guard
from jaxllm.tasks.registry import TASKS


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
