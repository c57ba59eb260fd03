"""Rows out of data sets of the Hugging Face Hub."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxllm.config.fields import DataConfig
from jaxllm.data.label_cells import MASKED
from jaxllm.data.rows import CHUNK, Source, columns_of, rows_of
from jaxllm.errors import InputError

_OFFLINE = (
    "Without a connection: give files (data.train, data.dev), or load the data set once where "
    "there is one and point HF_HOME at a copy of that cache"
)


class HubSplit(NamedTuple):
    """A split of a data set.

    Attributes:
        where: what messages call it.
        dataset: the `datasets` object.
        fingerprint: another string for every split and every content of one.
    """

    where: str
    dataset: Any
    fingerprint: str


def hub_source(data: DataConfig, split: str, *, labelled: bool) -> Source:
    """A split of ``data.dataset``; with ``data.streaming`` it is not downloaded as a whole.

    Raises:
        InputError: the Hub cannot be reached, or the data set, its configuration, split or column
            is not there.
    """
    where, dataset, fingerprint = load_split(data, split)
    features = dataset.features or {}
    if features:
        columns_of(where, features, data, labelled)
    column, *more = data.label_columns
    # Several columns hold 0 or 1 each, whatever the names of these are.
    names = _class_names(features.get(column)) if labelled and not more else None

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in records(where, dataset):
            if names is not None:
                record[column] = _named(record[column], names)
            yield number, record

    return Source(
        where,
        lambda: fingerprint,
        lambda: rows_of(where, rows(), data, labelled),
        names,
    )


def load_split(data: DataConfig, split: str) -> HubSplit:
    """A split of ``data.dataset``.

    Raises:
        InputError: the Hub cannot be reached, or the data set, its configuration or split is not
            there.
    """
    from datasets import load_dataset, load_dataset_builder

    held_out = split == "train" or data.dev_fraction
    part = data.train_split if held_out else data.dev_split
    where = f"data.dataset={data.dataset} (data.{split}_split={part})"
    dataset: Any
    try:
        if data.streaming:
            builder = load_dataset_builder(data.dataset, data.dataset_config)
            dataset = builder.as_streaming_dataset(split=part)
            content = f"{builder.config_id} {builder.hash}"  # the hash is the files', or the commit
        else:
            dataset = load_dataset(data.dataset, data.dataset_config, split=part)
            content = dataset._fingerprint
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: cannot be loaded: {error}. {_OFFLINE}") from error
    return HubSplit(where, dataset, f"{where} {data.dataset_config} {content}")


def records(where: str, dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with their numbers, from 1; InputError where the Hub gives no more."""
    number = 0
    try:
        for columns in dataset.iter(batch_size=CHUNK):
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, dict(zip(columns, values, strict=True))
    except OSError as error:
        raise InputError(f"{where}: stopped after row {number}: {error}. {_OFFLINE}") from error


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them."""
    return getattr(feature, "names", None) or getattr(
        getattr(feature, "feature", None), "names", None
    )


def _named(value: Any, names: list[str]) -> Any:
    """Names for ids. -1 and -100 are no label: data sets withhold labels so, or mask them for
    PyTorch; another id without a name stays, to be told as unknown.
    """
    if isinstance(value, list):
        return [_named(i, names) for i in value]
    if value in MASKED:
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
