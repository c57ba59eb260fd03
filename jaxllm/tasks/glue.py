"""`jaxllm glue`: fine-tunes on several tasks of GLUE, one after the other, and reports on all."""

import dataclasses
import logging
import math
import statistics
from pathlib import Path

import jax
import numpy as np

from jaxllm.config.checks import check
from jaxllm.config.fields import Config, DataConfig
from jaxllm.data.corpus import Examples, load_examples
from jaxllm.data.glue import TASKS, check_tasks, test_rows, train_and_dev
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.files import finite, write_atomic, write_json, writing
from jaxllm.metrics.classification import NAN
from jaxllm.models import apply_fn
from jaxllm.models.compute import computation
from jaxllm.nn.sharding import make_mesh
from jaxllm.pretrained import hf
from jaxllm.pretrained.labels import label_names
from jaxllm.pretrained.storage import OneModel, load_saved
from jaxllm.runs import loop, summary
from jaxllm.runs.directory import check_path
from jaxllm.tasks import build, classification
from jaxllm.tasks.evaluate import evaluate

logger = logging.getLogger("jaxllm")

Summary = dict[str, float]


def run(config: Config, tasks: list[str]) -> Summary:
    """Trains on each of `tasks` as `config` says, once or once per seed of `run.seeds`.

    A task's run is in ``run.dir/<task>``; finished ones are left as they are. The predictions of
    its test part, by the seed that is best on the dev part, are in ``run.dir/submission``, in the
    format that gluebenchmark.com takes. Report and summary are written after each task.

    Returns:
        ``<task>/<key>`` for each task, as in a run's summary; of several seeds the mean, and
        ``<task>/<key>_std``. MNLI has its mismatched part as ``eval/mm_<metric>``.
        ``eval/score`` is the mean over the tasks of the mean of each task's metrics (Wang et al.,
        2018).

    Raises:
        InputError: unknown tasks, data that are not there, and all that `loop.train` raises.
    """
    if config.run.push_to_hub is not None:
        raise InputError("run.push_to_hub: expected null, as each task of GLUE leaves a model")
    check_tasks(tasks, config)
    parts = {
        name: [task_config(name, config, part) for _, part in TASKS[name].dev] for name in tasks
    }
    check_path(config.run.dir)
    directory = Path(config.run.dir)
    with writing(str(directory), "Give another run.dir."):
        (directory / "submission").mkdir(parents=True, exist_ok=True)
    summaries: dict[str, Summary] = {}
    result: Summary = {}
    for name, (one, *more) in parts.items():
        logger.info("GLUE: %s", name)
        summaries[name] = _train(name, one, more)
        _submit(name, one, config.data, directory / "submission")
        result = _flat(summaries)
        if jax.process_index() == 0:
            write_json(directory / "summary.json", finite(result))
            write_atomic(directory / "report.md", report(summaries))
    logger.info("report:\n%s", report(summaries))
    return result


def task_config(name: str, config: Config, part: str) -> Config:
    """The configuration of a task's run, with `part` as its dev part."""
    task = TASKS[name]
    result = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, task="sequence-classification", problem_type=task.problem_type
        ),
        data=train_and_dev(name, config.data, part),
        train=dataclasses.replace(config.train, metric=config.train.metric or task.metrics[0]),
        run=dataclasses.replace(config.run, dir=str(Path(config.run.dir) / name)),
    )
    check(result)
    classification.check_metric(result, result.data.labels or [])
    return result


def report(summaries: dict[str, Summary]) -> str:
    """A table in Markdown: each task's metrics in percent, mean ± standard deviation over seeds."""
    lines = [
        "| task | metric | score | seeds | steps | real tokens/s | compiling, s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, values in summaries.items():
        run = " | ".join(
            f"{_known(values, f'train/{key}'):,.{digits}f}"
            for key, digits in (("steps", 0), ("real_tokens_per_second", 0), ("compile_seconds", 1))
        )
        seeds = int(values.get("train/seeds", 1))
        for metric in _metrics(name):
            score = f"{100 * _known(values, f'eval/{metric}'):.2f}"
            if seeds > 1:
                score += f" ± {100 * _known(values, f'eval/{metric}_std'):.2f}"
            lines.append(f"| {name} | {metric} | {score} | {seeds} | {run} |")
    mean = 100 * _flat(summaries)["eval/score"]
    return "\n".join([*lines, "", f"Mean over the tasks: {mean:.2f}", ""])


def _metrics(name: str) -> list[str]:
    task = TASKS[name]
    return [prefix + metric for prefix, _ in task.dev for metric in task.metrics]


def _known(values: Summary, key: str, otherwise: float = NAN) -> float:
    """A value of a summary; `otherwise` where it is undefined, as a correlation may be."""
    value = values.get(key)
    return otherwise if value is None or math.isnan(value) else value


def _flat(summaries: dict[str, Summary]) -> Summary:
    scores = [
        statistics.fmean(_known(values, f"eval/{metric}") for metric in _metrics(name))
        for name, values in summaries.items()
    ]
    flat = {f"{name}/{key}": x for name, values in summaries.items() for key, x in values.items()}
    return flat | {"eval/score": statistics.fmean(scores)}


def _train(name: str, config: Config, more: list[Config]) -> Summary:
    """The summary of a task's run, and the metrics on its further dev parts."""
    try:
        result = loop.train(config, build.build)
    except loop.Interrupted as stop:
        message = f"{stop} (this task; for all: the same jaxllm glue command)"
        raise loop.Interrupted(stop.signum, message) from None
    for (prefix, part), other in zip(TASKS[name].dev[1:], more, strict=True):
        judged = [_judge(run, prefix, part, other) for run in _runs(config)]
        result = result | (summary.over_seeds(judged) if config.run.seeds else judged[0])
    return result


def _judge(run: Path, prefix: str, part: str, config: Config) -> Summary:
    """The metrics of a run's model on another dev part; the report is in a folder named `part`."""
    saved = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=str(run / "model"), tokenizer=None, config={}),
        run=dataclasses.replace(config.run, dir=str(run / part)),
    )
    return {f"eval/{prefix}{metric}": x for metric, x in evaluate(saved).items()}


def _runs(config: Config) -> list[Path]:
    """The directories of a task's runs, one a seed."""
    directory = Path(config.run.dir)
    return [directory / f"seed_{seed}" for seed in config.run.seeds or []] or [directory]


def _submit(name: str, config: Config, data: DataConfig, directory: Path) -> None:
    """Writes the predictions of a task's test parts, by the best of its runs."""
    task = TASKS[name]

    def dev_score(run: Path) -> float:
        values = summary.read(run / "summary.json")
        return _known(values, f"eval/{task.metrics[0]}", -math.inf)

    model = str(max(_runs(config), key=dev_score) / "model")
    for suffix, part in task.test:
        rows = test_rows(name, data, part)
        if rows is None:
            logger.info("%s: there is no %s file, so no predictions for it", name, part)
            continue
        examples, logits_NC = _test_logits(model, dataclasses.replace(config, data=rows))
        answers = [task.answer(logits_C) for logits_C in logits_NC]
        lines = [f"{row - 1}\t{answer}" for row, answer in zip(examples.rows, answers, strict=True)]
        if jax.process_index() == 0:
            write_atomic(
                directory / f"{task.folder}{suffix}.tsv",
                "".join(f"{line}\n" for line in ["index\tprediction", *lines]),
            )


def _test_logits(model: str, config: Config) -> tuple[Examples, np.ndarray]:
    """The unlabelled rows of ``data.dev`` and a saved model's logits [N, C] for them."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    saved = hf.load_config(model)
    examples, _ = load_examples(
        config.data, "dev", load_tokenizer(model), problem_type=None, labels=None
    )
    one = OneModel(classification.HEAD, saved)
    _, graph, params = load_saved(model, one, mesh, computation(config.model, mesh))
    # The evaluator counts every row once; the loss it gives besides is of no use here.
    kind = np.float32 if config.model.problem_type == "regression" else np.int32
    examples = dataclasses.replace(examples, labels=np.zeros(len(examples), kind))
    evaluator = classification.evaluator(
        config, examples, label_names(saved), apply_fn(graph), mesh
    )
    return examples, evaluator.logits(params)[0]
