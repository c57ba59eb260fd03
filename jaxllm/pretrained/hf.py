"""Checkpoints of transformers, in and out: config, weights, tokenizer. No torch is needed."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import InputError
from jaxllm.pretrained import FAMILIES, attributes, loading, saving
from jaxllm.pretrained.converting import ConvertReport, convert
from jaxllm.pretrained.formats import read_tensors
from jaxllm.pretrained.loading import LoadReport
from jaxllm.pretrained.location import resolve
from jaxllm.pretrained.names import join
from jaxllm.sharding import map_params

__all__ = [
    "ConvertReport",
    "LoadReport",
    "convert",
    "load_config",
    "load_params",
    "resolve",
    "save_pretrained",
]

log = logging.getLogger("jaxllm.pretrained")


def load_config(path: str | Path | None, **overrides: Any) -> Any:
    """The transformers config at `path` with `overrides` set over it.

    `path`: a directory, Hub id or package: path. Without a path, `overrides` is all of it,
    model_type included. Raises InputError naming every attribute that would change the numbers and
    is not implemented, or that is not known.
    """
    if path is None:
        return attributes.make_config(overrides, "the model's config")
    directory = resolve(path, weights=False)
    return attributes.make_config(
        attributes.read_config(directory), str(directory / "config.json"), **overrides
    )


def load_params(
    directory: Path, config: Any, abstract: dict[str, Any], *, init: Callable[[str], Any]
) -> tuple[dict[str, Any], LoadReport]:
    """The parameters that `abstract` describes, from the weights in a directory.

    `abstract`: jax.ShapeDtypeStructs, placed by their `.sharding` where it is set. `init(path)`
    gives a parameter of a head that the checkpoint lacks. One tensor at a time is on the host
    beside what is already placed. Raises InputError with every missing, surplus or wrongly shaped
    tensor, before any is placed.
    """
    tensors = read_tensors(directory)
    family = FAMILIES[config.model_type]
    params, report = loading.load(family, tensors, abstract, directory, init)
    if report.new:
        log.warning("%s: newly initialised, to be trained: %s", directory, ", ".join(report.new))
    if report.unused:
        log.info("%s: tensors left unused: %s", directory, ", ".join(report.unused))
    return params, report


def save_pretrained(
    directory: str | Path,
    params: dict[str, Any],
    config: Any,
    *,
    weights: str = "safetensors",
    tokenizer: Any = None,
    task: str | None = None,
    max_shard_bytes: int = saving.MAX_SHARD_BYTES,
) -> None:
    """Writes what transformers' from_pretrained reads: config.json, weights, tokenizer files.

    `weights`: "safetensors" with PyTorch's names, or "flax" for the flax_model.msgpack of
    transformers 4's Flax classes. `tokenizer`: a transformers tokenizer, or a directory to copy its
    files from. `task`: the head, where the parameters alone do not tell. The directory appears
    whole or not at all; an earlier model in it is replaced. Raises InputError if it holds anything
    else or cannot be written.
    """
    saving.check_format(weights)
    family = FAMILIES[config.model_type]
    flax = weights == "flax"
    leaves: dict[str, Any] = {}
    map_params(leaves.__setitem__, params)
    architectures = family.architectures.values() if task is None else [family.architectures[task]]
    architecture, head = next(
        (name, head) for name, head in architectures if task or head in params or not head
    )
    expected = {
        leaf.path
        for leaf in family.by_path.values()
        if family.head(leaf) is None or family.head(leaf) in params
    }
    missing = {path for path in expected - leaves.keys() if not re.search(family.optional, path)}
    if missing or leaves.keys() - expected:
        raise InputError(
            f"the parameters are no {architecture}: missing {sorted(missing)}, "
            f"unexpected {sorted(leaves.keys() - expected)}"
        )
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, array in leaves.items():
        leaf, host = family.by_path[path], np.asarray(array)
        names = leaf.names(host.shape[0])
        for name, one in zip(names, host if leaf.stacked else [host], strict=True):
            stored = family.flax_name(name) if flax else name
            tensor = parts.setdefault(stored if head else family.bare(stored), {})
            tensor[leaf.part[0]] = leaf.to_stored(one, flax=flax)
    arrays = {name: join(tensor, flax=flax) for name, tensor in parts.items()}
    described = config.to_diff_dict() | {
        "architectures": [architecture],
        "dtype": str(next(iter(arrays.values())).dtype),
    }

    def fill(temporary: Path) -> None:
        saving.write_json(temporary / "config.json", described)
        saving.write_tokenizer(temporary, tokenizer)
        saving.write_weights(temporary, arrays, weights, max_shard_bytes)

    saving.write_directory(Path(directory), fill, replace=True)
