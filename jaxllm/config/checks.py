"""The values a configuration may have: ranges and combinations."""

import dataclasses
import difflib
import io
import math
import re
from collections.abc import Iterable

from jaxllm.config.fields import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from jaxllm.config.renamed import RENAMED
from jaxllm.config.require import at_least, require
from jaxllm.config.task_checks import check_task
from jaxllm.errors import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: it could not be saved


def check(config: Config) -> None:
    """Raises InputError, naming the key, for a value out of range or at odds with another."""
    _whole_numbers(config)
    _model(config.model)
    _data(config.data, config.model)
    check_task(config)
    _optimizer(config.optimizer)
    _lora(config)
    _train(config.train, config.model.problem_type, config.data.labels)
    steps, warmup = config.train.steps, config.optimizer.warmup
    fits = steps is None or warmup < 1 or warmup <= steps
    require("optimizer.warmup", warmup, fits, f"at most train.steps={steps}, or a share below 1")
    mesh, run = config.mesh, config.run
    for key, count in {"mesh.data": mesh.data, "mesh.processes": mesh.processes}.items():
        require(key, count, count == -1 or count >= 1, "-1 or at least 1")
    at_least(1, {"mesh.fsdp": mesh.fsdp, "mesh.tensor": mesh.tensor})
    at_least(1, {"run.keep": run.keep, "run.log_every": run.log_every})
    require("run.dir", run.dir, bool(run.dir), "the name of a directory")
    once = len(set(run.trackers)) == len(run.trackers)
    require("run.trackers", run.trackers, once, "each tracker once")
    if run.seeds is not None:
        one = "null, as each of run.seeds leaves a model: `hf upload` takes the one you choose"
        require("run.push_to_hub", run.push_to_hub, run.push_to_hub is None, one)
        require(
            "run.seeds",
            run.seeds,
            bool(run.seeds) and len(set(run.seeds)) == len(run.seeds),
            "different seeds, or null",
        )
        for seed in run.seeds:
            _seed("run.seeds", seed)


def nearest(name: str, keys: Iterable[str]) -> str:
    """`name` and, for a message, the most similar of the dotted `keys`, or those it may be.

    A field is compared with the fields of all sections, its own first, by what they were called
    before, too.
    """
    keys = list(keys)
    dashes = "--" if name.startswith("--") else ""
    before = {f"{dashes}{old}": f"{dashes}{new}" for old, new in RENAMED.items()}
    section, _, field = name.rpartition(".")
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys if "." in key))
    siblings = [key.partition(".")[2] for key in keys if section and key.startswith(f"{section}.")]
    if name in sections:
        return (
            f"{name}; it is a section, of {', '.join(k for k in keys if k.startswith(f'{name}.'))}"
        )

    def similarity(key: str) -> float:
        return difflib.SequenceMatcher(None, field, key.rpartition(".")[2]).ratio()

    others = [] if section else sections
    best = max([*(f"{section}.{s}" for s in siblings), *keys, *before, *others], key=similarity)
    if similarity(best) >= 0.75:
        return f"{name}; did you mean {before.get(best, best)}?"
    if siblings:
        return f"{name}; {section} has {', '.join(siblings)}"
    return f"{name}; the sections are {', '.join(sections)}"


def _model(model: ModelConfig) -> None:
    if model.path is None and "model_type" not in model.config:
        raise InputError(
            "model.path: found null and no model_type in model.config, expected pretrained weights "
            "(model.path: a directory, a Hub id or package:NAME/sub/dir) or all of the model's "
            "attributes (model.config: {model_type: bert, ...})"
        )
    require("model.path", model.path, model.path != "", "a directory, Hub id, package: or null")
    at_least(0, {"model.unroll": model.unroll})


def _data(data: DataConfig, model: ModelConfig) -> None:
    if data.corpus is not None:
        for key, value in {"data.train": data.train, "data.dataset": data.dataset}.items():
            absent = f"nothing beside data.corpus={data.corpus}, which is what is read"
            require(key, value, not value, absent)
    files = bool(data.train or data.dev)
    if files and data.dataset is not None:
        raise InputError(
            f"data.dataset: found {data.dataset!r} beside the files of data.train and data.dev, "
            "expected one of the two; remove the other"
        )
    if not files and data.dataset is None and data.corpus is None:
        raise InputError("data.train: found no file, expected files, or a Hub id as data.dataset")
    if data.dataset_config is not None and data.dataset is None:
        raise InputError(
            f"data.dataset_config: found {data.dataset_config!r} with no data.dataset; remove it, "
            "or name the Hub data set it belongs to"
        )
    _labels(data, model)
    _files(data)
    for key, names in {"data.columns": data.columns, "data.labels": data.labels}.items():
        if names is not None:
            different = bool(names) and len(set(names)) == len(names)
            require(key, names, different, "different names, or null")
    if model.problem_type == "regression":
        require("data.labels", data.labels, data.labels is None, "null, as this is regression")
    if model.problem_type == "single_label_classification" and data.labels is not None:
        require("data.labels", data.labels, len(data.labels) >= 2, "at least two labels")
    # [CLS] and [SEP] leave room for text from 3 tokens on; of a pair there are 2 more.
    least = 3 if data.text_pair is None else 5
    at_least(least, {"data.max_length": data.max_length})
    classes = model.task == "sequence-classification"
    single = classes and model.problem_type == "single_label_classification"
    balanced = data.sampler == "balanced"
    expected = "shuffle, as the rows of this task are of no class"
    require("data.sampler", data.sampler, single or not balanced, expected)
    at_least(1, {"data.pack_window": data.pack_window, "data.max_row_bytes": data.max_row_bytes})
    at_least(0, {"data.workers": data.workers})
    _dev_fraction(data)
    for key, limit in {
        "data.max_train_examples": data.max_train_examples,
        "data.max_dev_examples": data.max_dev_examples,
    }.items():
        require(key, limit, limit is None or limit >= 1, "at least 1, or null")
    if data.weights is not None:
        positive = len(data.weights) == len(data.train) and all(w > 0 for w in data.weights)
        require("data.weights", data.weights, positive, "a weight above 0 for each of data.train")
    rising = data.buckets == sorted(set(data.buckets)) and min(data.buckets, default=0) >= 1
    require("data.buckets", data.buckets, rising, "rising lengths of at least 1")
    if not data.packing:
        fits = data.buckets[-1] >= data.max_length
        require("data.buckets", data.buckets, fits, f"one of data.max_length={data.max_length}")


def _lora(config: Config) -> None:
    """The ranges of the section; and adapters are of weights that there are."""
    lora, path = config.lora, config.model.path
    at_least(0, {"lora.rank": lora.rank})
    require("lora.alpha", lora.alpha, 0 < lora.alpha < math.inf, "a number above 0")
    require("lora.dropout", lora.dropout, 0 <= lora.dropout < 1, "at least 0 and below 1")
    require("lora.targets", lora.targets, bool(lora.targets), "patterns of layers")
    if path is None and (lora.rank or config.model.adapter is not None):
        key = "lora.rank" if lora.rank else "model.adapter"
        raise InputError(f"{key}: an adapter is of pretrained weights; give model.path")


def _dev_fraction(data: DataConfig) -> None:
    """Rows are held out where there is no other dev part; of a stream nobody knows how many."""
    fraction = data.dev_fraction
    require("data.dev_fraction", fraction, 0 <= fraction < 1, "at least 0 and below 1")
    _seed("data.dev_seed", data.dev_seed)
    if not fraction:
        return
    split = "" if data.dataset is None else data.dev_split
    for key, value, way_out in (
        ("data.dev", data.dev, "remove one of the two"),
        ("data.dev_split", split, 'set data.dev_split: "" if that split is not the dev part'),
        ("data.streaming", data.streaming, "set data.streaming: false, as all rows are needed"),
    ):
        if value:
            raise InputError(
                f"data.dev_fraction: found {fraction} beside {key}={value}, expected 0; {way_out}"
            )


def _labels(data: DataConfig, model: ModelConfig) -> None:
    """Several label columns are for several labels a row, and their names are the labels'."""
    for name in [*(data.labels or []), *data.label_columns]:
        half = "text without half of a surrogate pair"
        require("data.labels", name, not _SURROGATE.search(name), half)
    if isinstance(data.label, str):
        return
    task, multi = model.task, "multi_label_classification"
    several = bool(data.label) and len(set(data.label)) == len(data.label)
    require("data.label", data.label, several, "a column, or a list of different columns")
    classes = task == "sequence-classification"
    require("data.label", data.label, classes, f"one column, as model.task is {task}")
    expected = f"{multi}, as data.label is a list of columns"
    require("model.problem_type", model.problem_type, model.problem_type == multi, expected)
    expected = "null, as the names of the columns in data.label are the labels"
    require("data.labels", data.labels, data.labels is None, expected)


def _files(data: DataConfig) -> None:
    """How files are written."""
    try:
        io.TextIOWrapper(io.BytesIO(), data.encoding if data.encoding != "auto" else "utf-8")
    except (LookupError, ValueError):
        raise InputError(
            f"data.encoding: found {data.encoding!r}, expected auto, or a name that Python has, "
            "such as utf-8, utf-16, gb18030, shift_jis or cp1252"
        ) from None
    one = len(data.delimiter) == 1 and data.delimiter not in "\r\n\"'"
    fits = one or data.delimiter in ("auto", "\\t")
    require("data.delimiter", data.delimiter, fits, "auto, or one character, such as ; or \\t")


def _optimizer(optimizer: OptimizerConfig) -> None:
    whole = optimizer.warmup < 1 or optimizer.warmup % 1 == 0
    at_least(
        0,
        {
            f"optimizer.{name}": getattr(optimizer, name)
            for name in ("learning_rate", "warmup", "weight_decay", "clip_norm", "l1", "l2")
            if getattr(optimizer, name) is not None
        },
    )
    expected = "a share below 1, or a whole number of steps"
    require("optimizer.warmup", optimizer.warmup, whole, expected)
    for name in ("beta1", "beta2", "momentum"):
        value = getattr(optimizer, name)
        fits = value is None or 0 <= value < 1
        require(f"optimizer.{name}", value, fits, "at least 0 and below 1")
    fits = optimizer.eps is None or 0 < optimizer.eps < math.inf
    require("optimizer.eps", optimizer.eps, fits, "above 0")
    decay = optimizer.layer_decay
    require("optimizer.layer_decay", decay, 0 < decay <= 1, "above 0 and at most 1")
    require("optimizer.frozen", optimizer.frozen, all(optimizer.frozen), "patterns of paths")


def _train(train: TrainConfig, problem_type: str, labels: list[str] | None) -> None:
    for name in ("batch_size", "accumulation", "eval_batch_size"):
        at_least(1, {f"train.{name}": getattr(train, name)})
    profile = train.profile
    fits = profile is None or (len(profile) == 2 and 1 <= profile[0] <= profile[1])
    require("train.profile", profile, fits, "a first and a last step, such as [10, 15], or null")
    for name in ("eval_every", "patience", "save_every"):
        at_least(0, {f"train.{name}": getattr(train, name)})
    require(
        "train.batch_size",
        train.batch_size,
        train.batch_size % train.accumulation == 0,
        f"a multiple of train.accumulation={train.accumulation}",
    )
    require("train.epochs", train.epochs, 0 < train.epochs < math.inf, "above 0")
    require("train.steps", train.steps, train.steps is None or train.steps >= 1, "at least 1")
    _seed("train.seed", train.seed)
    smoothing, weights = train.label_smoothing, train.class_weights
    require("train.label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and below 1")
    if problem_type == "regression":
        require("train.label_smoothing", smoothing, smoothing == 0, "0, as this is regression")
        require("train.class_weights", weights, weights is None, "null, as this is regression")
    if weights is not None and not isinstance(weights, str):
        positive = bool(weights) and all(0 <= w < math.inf for w in weights) and any(weights)
        require("train.class_weights", weights, positive, "weights of at least 0, not all 0")
        if labels is not None:
            require(
                "train.class_weights",
                weights,
                len(weights) == len(labels),
                f"{len(labels)} weights, one for each of data.labels",
            )


def _whole_numbers(config: Config) -> None:
    """Arrays hold steps, rows and positions in 32 bits."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            numbers = value if isinstance(value, list) else [value]
            small = all(abs(x) < 2**31 for x in numbers if type(x) is int) or "seed" in field.name
            require(f"{section.name}.{field.name}", value, small, "less than 2**31")


def _seed(key: str, seed: int) -> None:
    # 32 bits: what jax.random.key keeps of a seed without 64-bit types.
    require(key, seed, 0 <= seed < 2**32, "at least 0 and below 2**32")
