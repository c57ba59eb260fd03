"""What each task asks of a configuration, and the fields that it has no use for."""

import math
from collections.abc import Callable
from typing import Any

from jaxllm.config.fields import Config, QAConfig
from jaxllm.config.require import at_least, require

_CLASSES, _TAGS, _CHOICES = "sequence-classification", "token-classification", "multiple-choice"
_PAIRS, _CAUSAL = "sentence-embedding", "causal-lm"
_DOCUMENTS = ("masked-lm", "pretraining", _CAUSAL)

_USED_BY = {  # a field: the tasks that have a use for it; in another task it has its default
    "data.choices": (_CHOICES,),
    "data.shots": (_CHOICES,),
    "model.tags": (_TAGS,),
    "contrastive.negative": (_PAIRS,),
    "contrastive.score": (_PAIRS,),
    "contrastive.positive_from": (_PAIRS,),
    "train.label_smoothing": (_CLASSES, _TAGS, _CHOICES, _CAUSAL),
    "train.class_weights": (_CLASSES, _TAGS),
    "data.corpus": _DOCUMENTS,
    "lm.rows": (_CAUSAL,),
    "lm.stride": (_CAUSAL,),
    "lm.chat": (_CAUSAL,),
    "lm.z_loss": (_CAUSAL,),
}


def check_task(config: Config) -> None:
    """Raises InputError, naming the key, for what does not fit ``model.task``."""
    task = config.model.task
    for key, tasks in _USED_BY.items():
        value, default = _field(config, key), _field(Config(), key)
        shown = "null" if default is None else default
        fits = task in tasks or value == default
        require(key, value, fits, f"{shown}, as model.task is {task}")
    repair = config.data.on_bad_row == "repair"
    expected = f"error or drop; repair is for the tags of model.task={_TAGS}"
    require("data.on_bad_row", config.data.on_bad_row, task == _TAGS or not repair, expected)
    _columns(config)
    _masking(config)
    check_qa(config.qa)
    if task in _CHECKS:
        _CHECKS[task](config)


def _field(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _columns(config: Config) -> None:
    """The columns that are read are different ones."""
    data, task = config.data, config.model.task
    roles: dict[str, str | None] = {"data.text": data.text, "data.text_pair": data.text_pair}
    if task == _PAIRS:
        roles["contrastive.negative"] = config.contrastive.negative
        roles["contrastive.score"] = config.contrastive.score
    elif isinstance(data.label, str):
        roles["data.label"] = data.label
    else:
        roles |= {f"data.label[{i}]": column for i, column in enumerate(data.label)}
    columns = {key: column for key, column in roles.items() if column is not None}
    for key, column in columns.items():
        others = [other for other, name in columns.items() if other != key and name == column]
        require(key, column, not others, f"another column than {', '.join(others)}")
        if data.columns is not None:
            require(key, column, column in data.columns, f"one of data.columns {data.columns}")


def _masking(config: Config) -> None:
    data, masking = config.data, config.masking
    words, rate, slots = masking.words, masking.rate, masking.slots
    require("masking.words", words, not words or data.dataset is None, "null beside data.dataset")
    require("masking.rate", rate, 0 < rate < 1, "above 0 and below 1")
    fits = slots is None or 1 <= slots <= data.max_length
    require("masking.slots", slots, fits, f"1 to data.max_length={data.max_length}, or null")


def check_qa(qa: QAConfig) -> None:
    """Raises InputError, naming the key, for a value out of range."""
    for name in ("max_question_length", "max_answer_length", "n_best"):
        at_least(1, {f"qa.{name}": getattr(qa, name)})
    at_least(0, {"qa.doc_stride": qa.doc_stride})
    require("qa.null_threshold", qa.null_threshold, math.isfinite(qa.null_threshold), "a number")


def _contrastive(config: Config) -> None:
    data, train, contrastive = config.data, config.train, config.contrastive
    pair, threshold = data.text_pair, contrastive.positive_from
    require("data.text_pair", pair, pair is not None, "the column of the texts like data.text")
    fits = threshold is None or (contrastive.score is not None and math.isfinite(threshold))
    expected = "null, or a number with contrastive.score"
    require("contrastive.positive_from", threshold, fits, expected)
    at_least(6 if contrastive.negative is None else 9, {"data.max_length": data.max_length})
    temperature = contrastive.temperature
    require("contrastive.temperature", temperature, 0 < temperature < math.inf, "above 0")
    whole = "1: the negatives of a text are those of the whole batch, which cannot be cut"
    require("train.accumulation", train.accumulation, train.accumulation == 1, whole)


def _next_tokens(config: Config) -> None:
    data, lm, words = config.data, config.lm, config.masking.words
    require("masking.words", words, words is None, f"null, as model.task is {_CAUSAL}")
    fits = lm.stride is None or 1 <= lm.stride <= data.max_length
    require("lm.stride", lm.stride, fits, f"1 to data.max_length={data.max_length}, or null")
    require("lm.z_loss", lm.z_loss, 0 <= lm.z_loss < math.inf, "at least 0")
    why = "as lm.chat is true" if lm.chat else "as data.text_pair is the reply to learn"
    if lm.chat:
        require("data.text_pair", data.text_pair, data.text_pair is None, f"null, {why}")
    if lm.chat or data.text_pair is not None:
        for key in ("lm.rows", "lm.stride", "data.corpus", "data.streaming", "data.weights"):
            value, default = _field(config, key), _field(Config(), key)
            shown = {None: "null", False: "false"}.get(default, default)
            require(key, value, value == default, f"{shown}, {why}")


def _choices(config: Config) -> None:
    """The label is the place of the right choice, from 0."""
    data, choices = config.data, config.data.choices
    others = {data.text, *data.label_columns, data.text_pair}
    names = choices or []
    fits = bool(names) and len(set(names)) == len(names) and not others & set(names)
    at_least(0, {"data.shots": data.shots})
    require("data.choices", choices, fits, "columns of their own, as model.task is multiple-choice")
    for key, value, expected in (
        ("model.problem_type", config.model.problem_type, "single_label_classification"),
        ("data.labels", data.labels, None),
    ):
        shown = "null" if expected is None else expected
        require(key, value, value == expected, f"{shown}, as model.task is multiple-choice")


def _words(config: Config) -> None:
    """Words with tags."""
    model, data = config.model, config.data
    single = "single_label_classification"
    expected = f"{single}, as each word has one tag"
    require("model.problem_type", model.problem_type, model.problem_type == single, expected)
    require("data.text_pair", data.text_pair, data.text_pair is None, "null, as words are tagged")
    require("data.streaming", data.streaming, not data.streaming, "false, as words are tagged")


_CHECKS: dict[str, Callable[[Config], None]] = {
    _PAIRS: _contrastive,
    _CAUSAL: _next_tokens,
    _CHOICES: _choices,
    _TAGS: _words,
}
