"""The run of a configuration: `build` for training, `evaluate` for a saved model."""

import logging
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxllm import models
from jaxllm.config.fields import Config
from jaxllm.data.corpus import Examples
from jaxllm.data.loader import TrainExamples, TrainLoader
from jaxllm.data.sampler import Balanced
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.files import finite, write_atomic, write_json, writing
from jaxllm.metrics.flops import training_flops_per_token
from jaxllm.metrics.throughput import tokens_per_second_at_peak
from jaxllm.nn.sharding import batch_sharding, batch_shards, make_mesh
from jaxllm.pretrained import hf
from jaxllm.runs.job import Job
from jaxllm.runtime import processes
from jaxllm.tasks import (
    classification,
    embedding,
    multiple_choice,
    pretraining,
    question_answering,
    tokens,
)
from jaxllm.tasks.model import (
    check_batch,
    check_head,
    computation,
    initial_params,
    load_saved,
    place,
)
from jaxllm.tasks.task import SMALLER_IS_BETTER, Prepare
from jaxllm.training.optim import (
    check_frozen,
    learning_rate_schedule,
    make_optimizer,
    make_penalty,
    moves_idle_rows,
)
from jaxllm.training.step import init_state, make_train_step, state_shapes
from jaxllm.training.vocabulary import Vocabulary
from jaxllm.trees import flatten

logger = logging.getLogger("jaxllm")

TASKS: dict[str, Prepare] = {  # model.task -> what reads its data and fits its head
    "sequence-classification": classification.prepare,
    "token-classification": tokens.prepare,
    "sentence-embedding": embedding.prepare,
    "masked-lm": pretraining.prepare,
    "pretraining": pretraining.prepare,
    "question-answering": question_answering.prepare,
    "multiple-choice": multiple_choice.prepare,
}


def build(config: Config) -> Job:
    """Reads the data, loads the model into its shardings, makes the steps.

    Raises:
        InputError: data, model, mesh or settings that do not fit each other.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    compute = computation(config.model, mesh)
    tokenizer = load_tokenizer(_tokenizer_path(config))
    task = TASKS[config.model.task](config, tokenizer)
    assert task.train is not None
    graph, abstract = task.model.parts(compute)
    apply = models.apply_fn(graph)
    frozen = config.optimizer.frozen
    check_frozen(list(flatten(abstract)), frozen)
    examples: TrainExamples = task.train
    vocabulary = None
    if task.reads_word_table_only and not moves_idle_rows(config.optimizer):
        assert isinstance(examples, Examples)
        vocabulary = Vocabulary.of(examples.tokens, task.model.config.vocab_size)
        examples = vocabulary.renumber(examples)
    if config.data.sampler == "balanced":
        assert isinstance(examples, Examples)
        examples = Balanced(examples, config.train.seed)
    loader = TrainLoader(
        examples,
        data=config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        # Each shard's rows are split once more, into the parts of the accumulation.
        shards=batch_shards(mesh) * config.train.accumulation,
        sharding=batch_sharding(mesh),
    )
    check_batch(
        "train.batch_size",
        loader.rows_per_batch,
        config.data.max_length if config.data.packing else _shortest_row(config),
        task.model.config,
        mesh,
        parts=config.train.accumulation,
    )
    _check_eval_batch(config, task.model.config, mesh)
    total_steps = _total_steps(config, loader)
    schedule = learning_rate_schedule(config.optimizer, total_steps)
    tx = make_optimizer(config.optimizer, total_steps)
    # The weights come last: all mistakes above are told before a large file is read.
    params = initial_params(config, task, place(mesh, abstract))
    complete: Callable[[Any], Any] = lambda params: params  # noqa: E731
    if vocabulary is not None:
        params, complete = vocabulary.take(params, mesh)
    state = init_state(params, tx, mesh, seed=config.train.seed, frozen=frozen)
    train_step = make_train_step(
        task.objective(apply),
        tx,
        state,
        mesh,
        clip_norm=config.optimizer.clip_norm,
        accumulation=config.train.accumulation,
        frozen=frozen,
        whole_batch=task.whole_batch,
        penalty=make_penalty(config.optimizer),
    )
    evaluator = None if task.evaluator is None else task.evaluator(apply, mesh)

    def evaluate_params(params: Any) -> dict[str, float]:
        return {} if evaluator is None else evaluator.metrics(complete(params))

    def export(params: Any, directory: Path) -> None:
        params = complete(params)
        if jax.process_count() > 1:  # shards of other hosts; all of them take part
            params = processes.whole(params)
        if jax.process_index() == 0:
            task.model.save(directory, params, tokenizer)
            for place in {directory, directory / task.model.answers}:
                task.save_extras(place)

    def report(params: Any, directory: Path, step: int) -> None:
        if evaluator is not None:
            _, text = evaluator.write(complete(params), directory)
            of = f"{directory / 'model'}, step {step} of {total_steps}"
            logger.info("dev part:\n%s", _report(directory, of, text))
        model = shlex.quote(str(directory / "model" / task.model.answers))
        logger.info("next: jaxllm predict --model %s --input FILE --output FILE", model)

    # Where parameters are frozen, part of the backward pass is not computed.
    peak_rate = None
    if not frozen:
        lengths = task.train.at(0).text_lengths
        flops = training_flops_per_token(
            abstract, task.model.config, task.model.head, lengths, masked=config.data.mask_rate
        )
        kind, count = mesh.devices.flat[0].device_kind, mesh.devices.size
        peak_rate = tokens_per_second_at_peak(flops, kind, count)

    return Job(
        state=state,
        state_shape=state_shapes(state),
        train_step=train_step,
        loader=loader,
        total_steps=total_steps,
        learning_rate=lambda step: float(schedule(step)),
        evaluate=evaluate_params,
        metric=task.metric,
        higher_is_better=task.metric not in SMALLER_IS_BETTER,
        export=export,
        report=report,
        peak_rate=peak_rate,
    )


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
    check_head(config, saved)
    tokenizer = load_tokenizer(_tokenizer_path(config))
    task = TASKS[config.model.task](config, tokenizer, saved=saved)
    if task.evaluator is None:
        raise InputError("data.dev: found no files, expected the part to evaluate on")
    _check_eval_batch(config, saved, mesh)
    compute = computation(config.model, mesh)
    _, graph, params = load_saved(config.model.path, task.model, mesh, compute)
    evaluator = task.evaluator(models.apply_fn(graph), mesh)
    directory = Path(config.run.dir) / "evaluate"
    with writing(str(directory), "Give another run.dir."):
        directory.mkdir(parents=True, exist_ok=True)
    values, text = evaluator.write(params, directory)
    if jax.process_index() == 0:
        write_json(directory / "metrics.json", finite(values))
    logger.info("dev part:\n%s", _report(directory, config.model.path, text))
    logger.info("report, predictions and metrics: %s", directory)
    return values


def _report(directory: Path, model: str, text: str) -> str:
    """Writes report.txt, which begins with the model and the date; returns it."""
    text = f"model {model}, {time.strftime('%Y-%m-%d %H:%M')}\n{text}"
    if jax.process_index() == 0:
        write_atomic(directory / "report.txt", text)
    return text


def _tokenizer_path(config: Config) -> str:
    path = config.model.tokenizer or config.model.path
    if path is None:
        raise InputError("model.tokenizer: found null and no model.path; expected its directory")
    return path


def _check_eval_batch(config: Config, model_config: Any, mesh: Any) -> None:
    """Of examples of a few tokens, where they are packed: how many make a row is not known."""
    length = 3 if config.data.packing else _shortest_row(config)
    size = config.train.eval_batch_size
    check_batch("train.eval_batch_size", size, length, model_config, mesh)


def _shortest_row(config: Config) -> int:
    return min(config.data.buckets[0], config.data.max_length)


def _total_steps(config: Config, loader: TrainLoader) -> int:
    if config.train.steps is not None:
        return config.train.steps
    about = config.train.epochs * loader.steps_in_epoch(0)
    if about >= 2**31:  # a step is an int32
        raise InputError(
            f"train.epochs: found {config.train.epochs:g}, which is about {about:.3g} steps; "
            "expected less than 2**31 steps"
        )
    whole = math.floor(config.train.epochs)
    steps = sum(loader.steps_in_epoch(epoch) for epoch in range(whole))
    if rest := config.train.epochs - whole:
        steps += round(rest * loader.steps_in_epoch(whole))
    return max(steps, 1)
