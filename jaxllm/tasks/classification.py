"""Sequence classification and regression: what `jaxllm train` and `jaxllm evaluate` run.

`build` makes everything that a run needs from its config, `evaluate` judges a saved model.
"""

import logging
import math
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxllm import losses, metrics, models
from jaxllm.config_fields import Config
from jaxllm.data.corpus import Examples, load_examples, load_tokenizer
from jaxllm.data.loader import TrainLoader
from jaxllm.errors import InputError
from jaxllm.files import finite, write_json, writing
from jaxllm.job import Job
from jaxllm.optim import check_frozen, learning_rate_schedule, make_optimizer
from jaxllm.pretrained import hf
from jaxllm.sharding import batch_sharding, batch_shards, make_mesh
from jaxllm.tasks.evaluation import Evaluator
from jaxllm.tasks.inputs import InputFormat
from jaxllm.tasks.model import (
    MULTI,
    SINGLE,
    TASK,
    check_fit,
    head_config,
    initial_params,
    label_names,
    load_classifier,
    place,
    problem_type,
)
from jaxllm.train import flatten, init_state, make_eval_step, make_train_step, state_shapes

logger = logging.getLogger("jaxllm")

# What chooses the best model where train.metric is null.
METRIC = {SINGLE: "accuracy", MULTI: "f1", "regression": "pearson"}
SMALLER_IS_BETTER = {"loss", "mse", "mae"}


def build(config: Config) -> Job:
    """Reads the data, loads the model into its shardings, makes the steps.

    Raises:
        InputError: data, model, mesh or settings that do not fit each other.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    tokenizer = load_tokenizer(_tokenizer_path(config))
    problem = config.model.problem_type
    train, names = load_examples(
        config.data, "train", tokenizer, problem_type=problem, labels=config.data.labels
    )
    dev = None
    if _has_dev(config):
        dev, _ = load_examples(config.data, "dev", tokenizer, problem_type=problem, labels=names)
    metric = _metric(config, names)
    model_config = head_config(config, names)
    check_fit(config, model_config, tokenizer, names)
    loss_fn = _loss(config, names)
    options = {name: getattr(config.model, name) for name in ("dtype", "remat", "unroll")}
    graphdef, abstract = models.module_parts(model_config, TASK, **options)
    apply = models.apply_fn(graphdef)
    frozen = config.optimizer.frozen
    check_frozen(list(flatten(abstract)), frozen)
    loader = TrainLoader(
        train,
        data=config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        # Each shard's rows are split once more, into the parts of the accumulation.
        shards=batch_shards(mesh) * config.train.accumulation,
        sharding=batch_sharding(mesh),
    )
    total_steps = _total_steps(config, loader)
    schedule = learning_rate_schedule(config.optimizer, total_steps)
    tx = make_optimizer(config.optimizer, total_steps)
    # The weights come last: all mistakes above are told before a large file is read.
    params = initial_params(config, model_config, place(mesh, abstract))
    state = init_state(params, tx, mesh, seed=config.train.seed, frozen=frozen)
    train_step = make_train_step(
        apply,
        loss_fn,
        tx,
        state,
        mesh,
        clip_norm=config.optimizer.clip_norm,
        accumulation=config.train.accumulation,
        frozen=frozen,
    )
    evaluator = None if dev is None else _evaluator(config, dev, names, mesh, apply)

    def evaluate_params(params: Any) -> dict[str, float]:
        return {} if evaluator is None else evaluator.metrics(params)

    form = InputFormat(
        text=config.data.text,
        text_pair=config.data.text_pair,
        max_length=config.data.max_length,
        truncation=config.data.truncation,
    )

    def export(params: Any, directory: Path) -> None:
        if jax.process_count() > 1:  # shards of other hosts; all of them take part
            params = multihost_utils.process_allgather(params, tiled=True)
        if jax.process_index() == 0:
            hf.save_pretrained(directory, params, model_config, TASK, tokenizer=tokenizer)
            form.save(directory)

    def report(params: Any, directory: Path) -> None:
        if evaluator is not None:
            logger.info("dev part:\n%s", evaluator.write(params, directory)[1])
        model = shlex.quote(str(directory / "model"))
        logger.info("next: jaxllm predict --model %s --input FILE --output FILE", model)

    return Job(
        state=state,
        state_shape=state_shapes(state),
        train_step=train_step,
        loader=loader,
        total_steps=total_steps,
        learning_rate=lambda step: float(schedule(step)),
        evaluate=evaluate_params,
        metric=metric,
        higher_is_better=metric not in SMALLER_IS_BETTER,
        export=export,
        report=report,
    )


def evaluate(config: Config) -> dict[str, float]:
    """Judges the saved model at `model.path` on the dev part of `config`.

    Writes `report.txt`, `predictions.jsonl` and `metrics.json` into `<run.dir>/evaluate`, logs the
    report, and returns the metrics.

    Raises:
        InputError: no model, no head, no dev part, or labels that the model does not have.
    """
    if config.model.path is None:
        raise InputError("model.path: found null, expected the directory of a saved model")
    if not _has_dev(config):
        raise InputError("data.dev: found no files, expected the part to evaluate on")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    _, model_config, graphdef, params = load_classifier(
        config.model.path, mesh, dtype=config.model.dtype, unroll=config.model.unroll
    )
    for name, value in config.model.config.items():
        if getattr(model_config, name, None) != value:
            raise InputError(
                f"model.config: found {name}={value!r}, but the model at {config.model.path} has "
                f"{getattr(model_config, name, None)!r}; evaluation takes the model as it is"
            )
    problem = problem_type(model_config)
    if problem != config.model.problem_type:
        raise InputError(
            f"model.problem_type: found {config.model.problem_type}, but the model at "
            f"{config.model.path} was trained for {problem}; set model.problem_type={problem}"
        )
    tokenizer = load_tokenizer(_tokenizer_path(config))
    names = _known_labels(config, model_config)
    check_fit(config, model_config, tokenizer, names)
    dev, _ = load_examples(config.data, "dev", tokenizer, problem_type=problem, labels=names)
    evaluator = _evaluator(config, dev, names, mesh, models.apply_fn(graphdef))
    directory = Path(config.run.dir) / "evaluate"
    with writing(str(directory), "Give another run.dir."):
        directory.mkdir(parents=True, exist_ok=True)
    values, text = evaluator.write(params, directory)
    if jax.process_index() == 0:
        write_json(directory / "metrics.json", finite(values))
    logger.info("%s\n%s", config.model.path, text)
    return values


def _has_dev(config: Config) -> bool:
    data = config.data
    return bool(data.dev) or (data.dataset is not None and bool(data.dev_split))


def _tokenizer_path(config: Config) -> str:
    path = config.model.tokenizer or config.model.path
    if path is None:
        raise InputError("model.tokenizer: found null and no model.path; expected its directory")
    return path


def _known_labels(config: Config, model_config: Any) -> list[str]:
    """The saved model's label names; data.labels where it has none of its own."""
    names, wanted = label_names(model_config), config.data.labels
    if not wanted or wanted == names:
        return names
    if len(wanted) == len(names) and names == [f"LABEL_{i}" for i in range(len(names))]:
        return wanted
    raise InputError(
        f"data.labels: found {wanted}, but the model at {config.model.path} has {names}; set "
        "data.labels to those, or to null"
    )


def _metric(config: Config, names: list[str]) -> str:
    problem = config.model.problem_type
    labels = np.zeros((1, len(names)) if problem == MULTI else 1)
    known = metrics.classification_metrics(problem, np.zeros((1, len(names) or 1)), labels, names)
    metric = config.train.metric or METRIC[problem]
    if metric not in {*known, "loss"}:
        raise InputError(
            f"train.metric: found {metric!r}, expected one of {', '.join(known)}, loss"
        )
    return metric


def _loss(config: Config, names: list[str]) -> losses.LossFn:
    smoothing, weights = config.train.label_smoothing, config.train.class_weights
    if config.model.problem_type == SINGLE:
        if weights is not None and len(weights) != len(names):
            raise InputError(
                f"train.class_weights: found {len(weights)} weights, expected {len(names)}, one "
                f"for each of the labels {', '.join(names)}"
            )
        return partial(
            losses.cross_entropy,
            label_smoothing=smoothing,
            class_weights=None if weights is None else tuple(weights),
        )
    if smoothing or weights:
        key = "label_smoothing" if smoothing else "class_weights"
        raise InputError(f"train.{key}: expected none, it is for one label a row ({SINGLE})")
    return _plain_loss(config.model.problem_type)


def _plain_loss(problem: str) -> losses.LossFn:
    if problem == MULTI:
        return losses.binary_cross_entropy
    return losses.mean_squared_error if problem == "regression" else losses.cross_entropy


def _evaluator(
    config: Config, dev: Examples, names: list[str], mesh: Mesh, apply: Any
) -> Evaluator:
    return Evaluator(
        examples=dev,
        data=config.data,
        problem_type=config.model.problem_type,
        label_names=names,
        batch_size=config.train.eval_batch_size,
        mesh=mesh,
        # Plain: losses of runs with other smoothing or class weights stay comparable.
        eval_step=make_eval_step(apply, _plain_loss(config.model.problem_type), mesh),
    )


def _total_steps(config: Config, loader: TrainLoader) -> int:
    if config.train.steps is not None:
        return config.train.steps
    whole = math.floor(config.train.epochs)
    steps = sum(loader.steps_in_epoch(epoch) for epoch in range(whole))
    if rest := config.train.epochs - whole:
        steps += round(rest * loader.steps_in_epoch(whole))
    return max(steps, 1)
