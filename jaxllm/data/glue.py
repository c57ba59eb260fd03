"""The nine tasks of GLUE (Wang et al., 2018) in one table, and where their rows are.

Rows come from the Hub data set nyu-mll/glue, or from a directory with the files that
gluebenchmark.com gives out (a folder a task: RTE/train.tsv, RTE/dev.tsv, RTE/test.tsv). The files
are tab-separated and unquoted, and differ from task to task in their columns.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxllm.config.fields import Config, DataConfig
from jaxllm.errors import InputError


@dataclass(frozen=True)
class Columns:
    """The columns of text and label; `header` names all of them where a file has no header row."""

    text: str
    text_pair: str | None = None
    label: str = "label"
    header: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GlueTask:
    """A task.

    Attributes:
        folder: its folder among the files, and the name of its predictions.
        metrics: what GLUE reports; the first chooses the best model.
        hub: columns of the Hub data set.
        files: columns of the files.
        labels: names in the order of their ids, as the Hub has them; none = a number to predict.
        digits: the files have the ids in place of the names.
        dev: prefix of a metric's name -> dev part; the first is the one that chooses the model.
        test: name of the predictions -> test part.
        bad_rows: it is known to have rows with a text missing, which all readers leave out.
    """

    folder: str
    metrics: tuple[str, ...]
    hub: Columns
    files: Columns
    labels: tuple[str, ...] = ()
    digits: bool = False
    dev: tuple[tuple[str, str], ...] = (("", "dev"),)
    test: tuple[tuple[str, str], ...] = (("", "test"),)
    bad_rows: bool = False

    @property
    def problem_type(self) -> Literal["single_label_classification", "regression"]:
        """As in the configuration."""
        return "single_label_classification" if self.labels else "regression"

    def written(self, label: int) -> str:
        """A label as GLUE's files and predictions have it."""
        return str(label) if self.digits else self.labels[label]

    def answer(self, logits_C: np.ndarray) -> str:
        """What to predict for a row, as it stands in the file of predictions."""
        if self.labels:
            return self.written(int(np.argmax(logits_C)))
        return f"{np.clip(logits_C[0], 0.0, 5.0):.3f}"  # scores are 0 to 5


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = Columns("sentence1", "sentence2")

TASKS = {  # by the name of the Hub's configuration
    "cola": GlueTask(
        "CoLA",
        ("matthews",),
        hub=Columns("sentence"),
        files=Columns("sentence", header=("source", "label", "mark", "sentence")),
        labels=("unacceptable", "acceptable"),
        digits=True,
    ),
    "sst2": GlueTask(
        "SST-2",
        ("accuracy",),
        hub=Columns("sentence"),
        files=Columns("sentence"),
        labels=("negative", "positive"),
        digits=True,
    ),
    "mrpc": GlueTask(
        "MRPC",
        ("f1", "accuracy"),
        hub=_SENTENCES,
        files=Columns("#1 String", "#2 String", "Quality"),
        labels=("not_equivalent", "equivalent"),
        digits=True,
    ),
    "stsb": GlueTask(
        "STS-B",
        ("pearson", "spearman"),
        hub=_SENTENCES,
        files=Columns("sentence1", "sentence2", "score"),
    ),
    "qqp": GlueTask(
        "QQP",
        ("f1", "accuracy"),
        hub=Columns("question1", "question2"),
        files=Columns("question1", "question2", "is_duplicate"),
        labels=("not_duplicate", "duplicate"),
        digits=True,
        bad_rows=True,
    ),
    "mnli": GlueTask(
        "MNLI",
        ("accuracy",),
        hub=Columns("premise", "hypothesis"),
        files=Columns("sentence1", "sentence2", "gold_label"),
        labels=("entailment", "neutral", "contradiction"),
        dev=(("", "dev_matched"), ("mm_", "dev_mismatched")),
        test=(("-m", "test_matched"), ("-mm", "test_mismatched")),
    ),
    "qnli": GlueTask(
        "QNLI",
        ("accuracy",),
        hub=Columns("question", "sentence"),
        files=Columns("question", "sentence"),
        labels=_ENTAILMENT,
    ),
    "rte": GlueTask("RTE", ("accuracy",), hub=_SENTENCES, files=_SENTENCES, labels=_ENTAILMENT),
    "wnli": GlueTask(
        "WNLI",
        ("accuracy",),
        hub=_SENTENCES,
        files=_SENTENCES,
        labels=("not_entailment", "entailment"),
        digits=True,
    ),
}

# STS-B also goes about as "STSbenchmark": the same rows in sts-train.csv, sts-dev.csv and
# sts-test.csv, tab-separated without a header; some rows have two more columns.
_STS = ("genre", "file", "year", "id", "score", "sentence1", "sentence2", "license", "source")
_STS_COLUMNS = Columns("sentence1", "sentence2", "score", header=_STS)


def train_and_dev(name: str, data: DataConfig, part: str) -> DataConfig:
    """`data` with the training rows of a task and its dev part `part`.

    ``data.dataset`` is the Hub's name of the data, or the directory of the files.

    Raises:
        InputError: no such directory or files.
    """
    task = TASKS[name]
    folder = _folder(task, data)
    if task.bad_rows:
        data = dataclasses.replace(data, on_bad_row="drop")
    if folder is None:
        return _on_hub(task.hub, name, data, part, list(task.labels) or None)
    columns, train = _file(task, folder, "train", needed=True)
    _, dev = _file(task, folder, part, needed=True)
    labels = [task.written(i) for i in range(len(task.labels))]
    return _in_files(
        columns,
        data,
        train=train,
        dev=dev,
        labels=labels or None,
    )


def test_rows(name: str, data: DataConfig, part: str) -> DataConfig | None:
    """`data` with a test part, all of it, as the dev part; it has no labels. None: no such file."""
    task = TASKS[name]
    # An answer for every row: none may be left out.
    cut: Literal["right", "left"] = "left" if data.truncation == "left" else "right"
    data = dataclasses.replace(data, max_dev_examples=None, on_bad_row="error", truncation=cut)
    folder = _folder(task, data)
    if folder is None:
        return _on_hub(task.hub, name, data, part, None)
    columns, file = _file(task, folder, part, needed=False)
    if not file:
        return None
    if columns is not _STS_COLUMNS:
        columns = dataclasses.replace(columns, header=None)  # CoLA's test file has a header row
    return _in_files(columns, data, train=[], dev=file, labels=None)


def _on_hub(
    columns: Columns, name: str, data: DataConfig, part: str, labels: list[str] | None
) -> DataConfig:
    return dataclasses.replace(
        data,
        dataset_config=name,
        train_split="train",
        dev_split=part.replace("dev", "validation"),
        text=columns.text,
        text_pair=columns.text_pair,
        label=columns.label,
        labels=labels,
    )


def _in_files(
    columns: Columns,
    data: DataConfig,
    *,
    train: list[str],
    dev: list[str],
    labels: list[str] | None,
) -> DataConfig:
    return dataclasses.replace(
        data,
        train=train,
        dev=dev,
        dataset=None,
        dataset_config=None,
        format="tsv",
        delimiter="\t",
        quoting="none",
        text=columns.text,
        text_pair=columns.text_pair,
        label=columns.label,
        columns=None if columns.header is None else list(columns.header),
        labels=labels,
    )


def _folder(task: GlueTask, data: DataConfig) -> Path | None:
    """The task's folder in the directory ``data.dataset``; None: that is a name on the Hub."""
    if data.dataset is None or not Path(data.dataset).is_dir():
        return None
    names = (task.folder, task.folder.lower(), task.folder.replace("-", "").lower())
    for name in names:
        if (folder := Path(data.dataset) / name).is_dir():
            return folder
    raise InputError(
        f"data.dataset: {data.dataset} has no folder {task.folder} (or {names[-1]}); expected the "
        "directory of GLUE's files with a folder a task, or nyu-mll/glue for the Hub"
    )


def _file(task: GlueTask, folder: Path, part: str, *, needed: bool) -> tuple[Columns, list[str]]:
    """The columns and, in a list, the file of a part; no file if there is none."""
    kinds = [(task.files, f"{part}.tsv")]
    if task.folder == "STS-B":
        kinds.append((_STS_COLUMNS, f"sts-{part}.csv"))
    for columns, name in kinds:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return columns, [str(file)]
    if needed:
        raise InputError(
            f"{folder}: there is no {' or '.join(name for _, name in kinds)}; expected the files "
            "of gluebenchmark.com, each also with .gz"
        )
    return task.files, []


def check_tasks(names: list[str], config: Config) -> None:
    """Refuses names that are no tasks, and settings that a task decides."""
    for name in names:
        if name not in TASKS:
            raise InputError(f"--tasks: found {name!r}, expected some of {', '.join(TASKS)}")
    if len(set(names)) < len(names):
        raise InputError(f"--tasks: found {' '.join(names)}, expected each task once")
    if config.data.dataset is None:
        raise InputError(
            "data.dataset: found null, expected nyu-mll/glue, or the directory of GLUE's files"
        )
