"""Judging a saved model on the dev part of a configuration."""

import logging
import time
from pathlib import Path
from typing import Any

import jax

from jaxllm import models
from jaxllm.config.fields import Config
from jaxllm.data.fit import check_batch
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.files import finite, write_atomic, write_json, writing
from jaxllm.models.compute import computation
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import load_saved
from jaxllm.tasks.adapting import with_adapter
from jaxllm.tasks.head import check_head
from jaxllm.tasks.registry import TASKS

logger = logging.getLogger("jaxllm")


def evaluate(config: Config) -> dict[str, float]:
    """Judges the saved model at `model.path` on the dev part of `config`.

    Writes `report.txt`, the predictions and `metrics.json` into `<run.dir>/evaluate`, logs the
    report, and returns the metrics.

    Raises:
        InputError: no model, no head, no dev part, or labels that the model does not have.
    """
    if config.model.path is None:
        raise InputError("model.path: found null, expected the directory of a saved model")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    saved = hf.load_config(config.model.path)
    for name, value in config.model.config.items():
        if getattr(saved, name, None) != value:
            raise InputError(
                f"model.config: found {name}={value!r}, but the model at {config.model.path} has "
                f"{getattr(saved, name, None)!r}; evaluation takes the model as it is"
            )
    if config.model.adapter is None:
        check_head(config, saved)
    tokenizer = load_tokenizer(tokenizer_path(config))
    task = TASKS[config.model.task].prepare(config, tokenizer, saved=saved)
    if task.evaluator is None:
        raise InputError("data.dev: found no files, expected the part to evaluate on")
    check_eval_batch(config, saved, mesh)
    compute = computation(config.model, mesh)
    model, adapter = with_adapter(config, task.model)
    _, graph, params = load_saved(config.model.path, model, mesh, compute)
    if adapter is not None:
        params = adapter.merged(params)
    evaluator = task.evaluator(models.apply_fn(graph), mesh)
    directory = Path(config.run.dir) / "evaluate"
    with writing(str(directory), "Give another run.dir."):
        directory.mkdir(parents=True, exist_ok=True)
    values, text = evaluator.write(params, directory)
    if jax.process_index() == 0:
        write_json(directory / "metrics.json", finite(values))
    logger.info("dev part:\n%s", write_report(directory, config.model.path, text))
    logger.info("report, predictions and metrics: %s", directory)
    return values


def write_report(directory: Path, model: str, text: str) -> str:
    """Writes report.txt, which begins with the model and the date; returns it."""
    model = model.encode(errors="backslashreplace").decode()  # the name may be no UTF-8
    text = f"model {model}, {time.strftime('%Y-%m-%d %H:%M')}\n{text}"
    if jax.process_index() == 0:
        write_atomic(directory / "report.txt", text)
    return text


def tokenizer_path(config: Config) -> str:
    """Where the tokenizer of a configuration is; InputError where nothing says it."""
    path = config.model.tokenizer or config.model.path
    if path is None:
        raise InputError("model.tokenizer: found null and no model.path; expected its directory")
    return path


def check_eval_batch(config: Config, model_config: Any, mesh: Any) -> None:
    """Of examples of a few tokens, where they are packed: how many make a row is not known."""
    length = 3 if config.data.packing else shortest_row(config)
    size = config.train.eval_batch_size
    check_batch("train.eval_batch_size", size, length, model_config, mesh)


def shortest_row(config: Config) -> int:
    """Tokens of the shortest row that is padded to a bucket."""
    return min(config.data.buckets[0], config.data.max_length)
