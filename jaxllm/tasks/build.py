"""The training run of a configuration: data, model and steps."""

import logging
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxllm import models
from jaxllm.config.fields import Config
from jaxllm.data.corpus import Examples
from jaxllm.data.fit import check_batch
from jaxllm.data.loader import TrainExamples, TrainLoader
from jaxllm.data.sampler import Balanced
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.metrics.flops import training_flops_per_token
from jaxllm.metrics.throughput import tokens_per_second_at_peak
from jaxllm.models.compute import computation
from jaxllm.nn.sharding import batch_sharding, batch_shards, make_mesh, place
from jaxllm.pretrained.storage import initial_params
from jaxllm.runs.job import Job
from jaxllm.runtime import processes
from jaxllm.tasks.adapting import check_label_order, with_adapter, with_lora
from jaxllm.tasks.evaluate import check_eval_batch, shortest_row, tokenizer_path, write_report
from jaxllm.tasks.registry import TASKS
from jaxllm.tasks.task import SMALLER_IS_BETTER
from jaxllm.training.optim import (
    FlatParams,
    check_frozen,
    learning_rate_schedule,
    make_optimizer,
    make_penalty,
    moves_idle_rows,
    trainable,
)
from jaxllm.training.step import init_state, make_train_step, state_shapes
from jaxllm.training.vocabulary import Vocabulary
from jaxllm.trees import flatten, leaf_at, unflatten

logger = logging.getLogger("jaxllm")


def build(config: Config) -> Job:
    """Reads the data, loads the model into its shardings, makes the steps.

    Raises:
        InputError: data, model, mesh or settings that do not fit each other.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    compute = computation(config.model, mesh)
    tokenizer = load_tokenizer(tokenizer_path(config))
    task = TASKS[config.model.task].prepare(config, tokenizer)
    assert task.train is not None
    model, adapter = with_adapter(config, task.model)
    check_label_order(config, model, adapter)
    lora = with_lora(config, model, adapter)
    model = lora or model
    graph, abstract = model.parts(compute)
    apply = models.apply_fn(graph)
    frozen, paths = config.optimizer.frozen, flatten(abstract)
    if lora is not None:
        paths = {path: x for path, x in paths.items() if lora.trains(path)}
    check_frozen(list(paths), frozen)
    examples: TrainExamples = task.train
    vocabulary = None
    if lora is None and task.reads_word_table_only and not moves_idle_rows(config.optimizer):
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
        config.data.max_length if config.data.packing else shortest_row(config),
        task.model.config,
        mesh,
        parts=config.train.accumulation,
    )
    check_eval_batch(config, task.model.config, mesh)
    total_steps = _total_steps(config, loader)
    schedule = learning_rate_schedule(config.optimizer, total_steps)
    tx = make_optimizer(config.optimizer, total_steps)
    # The weights come last: all mistakes above are told before a large file is read.
    params = initial_params(model, config.model.path, config.train.seed, place(mesh, abstract))
    if adapter is not None and lora is None:
        params = adapter.merged(params)
    complete: Callable[[Any], Any] = lambda params: params  # noqa: E731
    base: FlatParams = {}
    if lora is not None:
        # What is not trained is no part of the state: no snapshot holds it, no step writes it.
        base = {path: x for path, x in flatten(params).items() if path not in paths}
        params = unflatten({path: leaf_at(params, path) for path in paths})
        complete = lambda params: unflatten({**base, **flatten(params)})  # noqa: E731
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
        base=base,
    )
    evaluator = None if task.evaluator is None else task.evaluator(apply, mesh)

    def evaluate_params(params: Any) -> dict[str, float]:
        return {} if evaluator is None else evaluator.metrics(complete(params))

    def export(params: Any, directory: Path) -> None:
        params = complete(params)
        if jax.process_count() > 1:  # shards of other hosts; all of them take part
            params = processes.whole(params)
        if jax.process_index() == 0:
            model.save(directory, params, tokenizer)
            for place in {directory, directory / task.model.answers}:
                task.save_extras(place)

    def report(params: Any, directory: Path, step: int) -> None:
        if evaluator is not None:
            _, text = evaluator.write(complete(params), directory)
            of = f"{directory / 'model'}, step {step} of {total_steps}"
            logger.info("dev part:\n%s", write_report(directory, of, text))
        place = shlex.quote(str(directory / "model" / task.model.answers))
        logger.info("next: jaxllm predict --model %s --input FILE --output FILE", place)

    # Where parameters are frozen, part of the backward pass is not computed.
    peak_rate = trained = None
    if frozen or lora is not None:
        sizes = {path: math.prod(x.shape) for path, x in flatten(abstract).items()}
        own = sum(sizes[path] for path in paths if trainable(path, frozen))
        trained = own, sum(sizes.values())
        logger.info("%s of %s parameters are trained, %.3g %%", *trained, 100 * own / trained[1])
    else:
        lengths = task.train.at(0).text_lengths
        flops = training_flops_per_token(
            abstract, task.model.config, task.model.head, lengths, masked=config.masking.rate
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
        trained=trained,
    )


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
