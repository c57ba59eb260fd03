"""The values a configuration may have: ranges and combinations."""

import dataclasses
import difflib
import io
import math
import re
from collections.abc import Iterable
from typing import Any

from jaxllm.config.fields import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    QAConfig,
    TrainConfig,
)
from jaxllm.config.renamed import RENAMED
from jaxllm.errors import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: it could not be saved


def check(config: Config) -> None:
    """Raises InputError, naming the key, for a value out of range or at odds with another."""
    _whole_numbers(config)
    _model(config.model)
    _data(config.data, config.model)
    _columns(config)
    _masking(config)
    check_qa(config.qa)
    _choices(config)
    _words(config)
    _optimizer(config.optimizer)
    _train(config.train, config.model.problem_type, config.data.labels)
    if config.model.task == "sentence-embedding":
        _contrastive(config)
    steps, warmup = config.train.steps, config.optimizer.warmup
    fits = steps is None or warmup < 1 or warmup <= steps
    _require("optimizer.warmup", warmup, fits, f"at most train.steps={steps}, or a share below 1")
    mesh, run = config.mesh, config.run
    for key, count in {"mesh.data": mesh.data, "mesh.processes": mesh.processes}.items():
        _require(key, count, count == -1 or count >= 1, "-1 or at least 1")
    _at_least(1, {"mesh.fsdp": mesh.fsdp, "mesh.tensor": mesh.tensor})
    _at_least(1, {"run.keep": run.keep, "run.log_every": run.log_every})
    _require("run.dir", run.dir, bool(run.dir), "the name of a directory")
    once = len(set(run.trackers)) == len(run.trackers)
    _require("run.trackers", run.trackers, once, "each tracker once")
    if run.seeds is not None:
        one = "null, as each of run.seeds leaves a model: `hf upload` takes the one you choose"
        _require("run.push_to_hub", run.push_to_hub, run.push_to_hub is None, one)
        _require(
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
    _require("model.path", model.path, model.path != "", "a directory, Hub id, package: or null")
    _at_least(0, {"model.unroll": model.unroll})


def _data(data: DataConfig, model: ModelConfig) -> None:
    files = bool(data.train or data.dev)
    if files and data.dataset is not None:
        raise InputError(
            f"data.dataset: found {data.dataset!r} beside the files of data.train and data.dev, "
            "expected one of the two; remove the other"
        )
    if not files and data.dataset is None:
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
            _require(key, names, different, "different names, or null")
    if model.problem_type == "regression":
        _require("data.labels", data.labels, data.labels is None, "null, as this is regression")
    if model.problem_type == "single_label_classification" and data.labels is not None:
        _require("data.labels", data.labels, len(data.labels) >= 2, "at least two labels")
    # [CLS] and [SEP] leave room for text from 3 tokens on; of a pair there are 2 more.
    least = 3 if data.text_pair is None else 5
    _at_least(least, {"data.max_length": data.max_length})
    classes = model.task == "sequence-classification"
    single = classes and model.problem_type == "single_label_classification"
    balanced = data.sampler == "balanced"
    expected = "shuffle, as the rows of this task are of no class"
    _require("data.sampler", data.sampler, single or not balanced, expected)
    _at_least(1, {"data.pack_window": data.pack_window, "data.max_row_bytes": data.max_row_bytes})
    _at_least(0, {"data.workers": data.workers})
    _dev_fraction(data)
    for key, limit in {
        "data.max_train_examples": data.max_train_examples,
        "data.max_dev_examples": data.max_dev_examples,
    }.items():
        _require(key, limit, limit is None or limit >= 1, "at least 1, or null")
    if data.weights is not None:
        positive = len(data.weights) == len(data.train) and all(w > 0 for w in data.weights)
        _require("data.weights", data.weights, positive, "a weight above 0 for each of data.train")
    rising = data.buckets == sorted(set(data.buckets)) and min(data.buckets, default=0) >= 1
    _require("data.buckets", data.buckets, rising, "rising lengths of at least 1")
    if not data.packing:
        fits = data.buckets[-1] >= data.max_length
        _require("data.buckets", data.buckets, fits, f"one of data.max_length={data.max_length}")


def _dev_fraction(data: DataConfig) -> None:
    """Rows are held out where there is no other dev part; of a stream nobody knows how many."""
    fraction = data.dev_fraction
    _require("data.dev_fraction", fraction, 0 <= fraction < 1, "at least 0 and below 1")
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
        _require("data.labels", name, not _SURROGATE.search(name), half)
    if isinstance(data.label, str):
        return
    task, multi = model.task, "multi_label_classification"
    several = bool(data.label) and len(set(data.label)) == len(data.label)
    _require("data.label", data.label, several, "a column, or a list of different columns")
    classes = task == "sequence-classification"
    _require("data.label", data.label, classes, f"one column, as model.task is {task}")
    expected = f"{multi}, as data.label is a list of columns"
    _require("model.problem_type", model.problem_type, model.problem_type == multi, expected)
    expected = "null, as the names of the columns in data.label are the labels"
    _require("data.labels", data.labels, data.labels is None, expected)


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
    _require("data.delimiter", data.delimiter, fits, "auto, or one character, such as ; or \\t")


def _columns(config: Config) -> None:
    """The columns that are read are different ones."""
    data, task = config.data, config.model.task
    roles: dict[str, str | None] = {"data.text": data.text, "data.text_pair": data.text_pair}
    contrastive = config.contrastive
    own = {"contrastive.negative": contrastive.negative, "contrastive.score": contrastive.score}
    if task == "sentence-embedding":
        roles |= own
    elif isinstance(data.label, str):
        roles["data.label"] = data.label
    else:
        roles |= {f"data.label[{i}]": column for i, column in enumerate(data.label)}
    if task != "sentence-embedding":
        for key, value in {**own, "contrastive.positive_from": contrastive.positive_from}.items():
            _require(key, value, value is None, f"null, as model.task is {task}")
    columns = {key: column for key, column in roles.items() if column is not None}
    for key, column in columns.items():
        others = [other for other, name in columns.items() if other != key and name == column]
        _require(key, column, not others, f"another column than {', '.join(others)}")
        if data.columns is not None:
            _require(key, column, column in data.columns, f"one of data.columns {data.columns}")


def _masking(config: Config) -> None:
    data, masking = config.data, config.masking
    words, rate, slots = masking.words, masking.rate, masking.slots
    _require("masking.words", words, not words or data.dataset is None, "null beside data.dataset")
    _require("masking.rate", rate, 0 < rate < 1, "above 0 and below 1")
    fits = slots is None or 1 <= slots <= data.max_length
    _require("masking.slots", slots, fits, f"1 to data.max_length={data.max_length}, or null")


def check_qa(qa: QAConfig) -> None:
    """Raises InputError, naming the key, for a value out of range."""
    for name in ("max_question_length", "max_answer_length", "n_best"):
        _at_least(1, {f"qa.{name}": getattr(qa, name)})
    _at_least(0, {"qa.doc_stride": qa.doc_stride})
    _require("qa.null_threshold", qa.null_threshold, math.isfinite(qa.null_threshold), "a number")


def _choices(config: Config) -> None:
    """The label is the place of the right choice, from 0."""
    data, task = config.data, config.model.task
    choices = data.choices
    if task != "multiple-choice":
        _require("data.choices", choices, choices is None, f"null, as model.task is {task}")
        return
    others = {data.text, *data.label_columns, data.text_pair}
    names = choices or []
    fits = bool(names) and len(set(names)) == len(names) and not others & set(names)
    _require(
        "data.choices", choices, fits, "columns of their own, as model.task is multiple-choice"
    )
    for key, value, expected in (
        ("model.problem_type", config.model.problem_type, "single_label_classification"),
        ("data.labels", data.labels, None),
        ("train.class_weights", config.train.class_weights, None),
    ):
        shown = "null" if expected is None else expected
        _require(key, value, value == expected, f"{shown}, as model.task is multiple-choice")


def _words(config: Config) -> None:
    model, data = config.model, config.data
    if model.task != "token-classification":
        expected = "error or drop; repair is for the tags of model.task=token-classification"
        _require("data.on_bad_row", data.on_bad_row, data.on_bad_row != "repair", expected)
        _require(
            "model.tags", model.tags, model.tags == "auto", f"auto, as model.task is {model.task}"
        )
        return
    single = "single_label_classification"
    expected = f"{single}, as each word has one tag"
    _require("model.problem_type", model.problem_type, model.problem_type == single, expected)
    _require("data.text_pair", data.text_pair, data.text_pair is None, "null, as words are tagged")
    _require("data.streaming", data.streaming, not data.streaming, "false, as words are tagged")


def _optimizer(optimizer: OptimizerConfig) -> None:
    whole = optimizer.warmup < 1 or optimizer.warmup % 1 == 0
    _at_least(
        0,
        {
            f"optimizer.{name}": getattr(optimizer, name)
            for name in ("learning_rate", "warmup", "weight_decay", "clip_norm", "l1", "l2")
            if getattr(optimizer, name) is not None
        },
    )
    expected = "a share below 1, or a whole number of steps"
    _require("optimizer.warmup", optimizer.warmup, whole, expected)
    for name in ("beta1", "beta2", "momentum"):
        value = getattr(optimizer, name)
        fits = value is None or 0 <= value < 1
        _require(f"optimizer.{name}", value, fits, "at least 0 and below 1")
    fits = optimizer.eps is None or 0 < optimizer.eps < math.inf
    _require("optimizer.eps", optimizer.eps, fits, "above 0")
    decay = optimizer.layer_decay
    _require("optimizer.layer_decay", decay, 0 < decay <= 1, "above 0 and at most 1")
    _require("optimizer.frozen", optimizer.frozen, all(optimizer.frozen), "patterns of paths")


def _train(train: TrainConfig, problem_type: str, labels: list[str] | None) -> None:
    for name in ("batch_size", "accumulation", "eval_batch_size"):
        _at_least(1, {f"train.{name}": getattr(train, name)})
    profile = train.profile
    fits = profile is None or (len(profile) == 2 and 1 <= profile[0] <= profile[1])
    _require("train.profile", profile, fits, "a first and a last step, such as [10, 15], or null")
    for name in ("eval_every", "patience", "save_every"):
        _at_least(0, {f"train.{name}": getattr(train, name)})
    _require(
        "train.batch_size",
        train.batch_size,
        train.batch_size % train.accumulation == 0,
        f"a multiple of train.accumulation={train.accumulation}",
    )
    _require("train.epochs", train.epochs, 0 < train.epochs < math.inf, "above 0")
    _require("train.steps", train.steps, train.steps is None or train.steps >= 1, "at least 1")
    _seed("train.seed", train.seed)
    smoothing, weights = train.label_smoothing, train.class_weights
    _require("train.label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and below 1")
    if problem_type == "regression":
        _require("train.label_smoothing", smoothing, smoothing == 0, "0, as this is regression")
        _require("train.class_weights", weights, weights is None, "null, as this is regression")
    if weights is not None and not isinstance(weights, str):
        positive = bool(weights) and all(0 <= w < math.inf for w in weights) and any(weights)
        _require("train.class_weights", weights, positive, "weights of at least 0, not all 0")
        if labels is not None:
            _require(
                "train.class_weights",
                weights,
                len(weights) == len(labels),
                f"{len(labels)} weights, one for each of data.labels",
            )


def _contrastive(config: Config) -> None:
    data, train, contrastive = config.data, config.train, config.contrastive
    pair, threshold = data.text_pair, contrastive.positive_from
    _require("data.text_pair", pair, pair is not None, "the column of the texts like data.text")
    fits = threshold is None or (contrastive.score is not None and math.isfinite(threshold))
    expected = "null, or a number with contrastive.score"
    _require("contrastive.positive_from", threshold, fits, expected)
    _at_least(6 if contrastive.negative is None else 9, {"data.max_length": data.max_length})
    temperature = contrastive.temperature
    _require("contrastive.temperature", temperature, 0 < temperature < math.inf, "above 0")
    whole = "1: the negatives of a text are those of the whole batch, which cannot be cut"
    _require("train.accumulation", train.accumulation, train.accumulation == 1, whole)
    smoothing, weights = train.label_smoothing, train.class_weights
    _require("train.label_smoothing", smoothing, smoothing == 0, "0, as there are no labels")
    _require("train.class_weights", weights, weights is None, "null, as there are no labels")


def _whole_numbers(config: Config) -> None:
    """Arrays hold steps, rows and positions in 32 bits."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            numbers = value if isinstance(value, list) else [value]
            small = all(abs(x) < 2**31 for x in numbers if type(x) is int) or "seed" in field.name
            _require(f"{section.name}.{field.name}", value, small, "less than 2**31")


def _seed(key: str, seed: int) -> None:
    # 32 bits: what jax.random.key keeps of a seed without 64-bit types.
    _require(key, seed, 0 <= seed < 2**32, "at least 0 and below 2**32")


def _at_least(least: int, values: dict[str, Any]) -> None:
    for key, value in values.items():
        _require(key, value, least <= value < math.inf, f"at least {least}")


def _require(key: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise InputError(f"{key}: found {value!r}, expected {expected}")
