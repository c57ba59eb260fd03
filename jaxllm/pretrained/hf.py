"""Checkpoints of transformers, in and out: config, weights, tokenizer. No torch is needed."""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxllm.errors import InputError
from jaxllm.models import family_of, module_parts
from jaxllm.names.table import join
from jaxllm.pretrained import configs, loading, saving
from jaxllm.pretrained.converting import ConvertReport, convert
from jaxllm.pretrained.formats import read_tensors
from jaxllm.pretrained.generation_defaults import generation_defaults, settings_to_keep
from jaxllm.pretrained.loading import LoadReport
from jaxllm.pretrained.location import resolve
from jaxllm.pretrained.tensors import all_finite
from jaxllm.runtime import memory
from jaxllm.trees import flatten

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
        return configs.make_config(overrides, "the model's config")
    directory = resolve(path, weights=False)
    return configs.make_config(
        configs.read_config(directory), str(directory / "config.json"), **overrides
    )


def load_params(
    directory: Path,
    config: Any,
    abstract: dict[str, Any],
    *,
    init: Callable[[str], Any],
    dropped: Collection[str] = (),
    given: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, Any], LoadReport]:
    """The parameters that `abstract` describes, from the weights in a directory.

    `abstract`: jax.ShapeDtypeStructs, placed by their `.sharding` where it is set. `init(path)`
    gives a parameter of a head that the checkpoint lacks, and those at the paths `dropped`.
    `given`: arrays to take in place of the checkpoint's, by path. One tensor at a time is on the
    host beside what is already placed. Raises InputError with every missing, surplus or wrongly
    shaped tensor, before any is placed.
    """
    memory.check(memory.bytes_of(abstract), f"{directory}: the parameters", "use more devices")
    tensors = read_tensors(directory)
    table = family_of(config).table
    params, report = loading.load(
        *(table, tensors, abstract, directory),
        lambda path: given[path] if path in given else init(path),
        {*dropped, *given},
        ties=table.ties(config),
    )
    if new := [path for path in report.new if path not in given]:
        log.warning("%s: newly initialised, to be trained: %s", directory, ", ".join(new))
    if report.unused:
        log.info("%s: tensors left unused: %s", directory, ", ".join(report.unused))
    return params, report


def stored_outputs(directory: Path, config: Any, paths: Collection[str]) -> set[int]:
    """How many outputs the layers of the parameters at `paths` have in the weights of a directory;
    none where the weights lack them.
    """
    table = family_of(config).table
    found = set()
    for name, source in loading.gather(table, read_tensors(directory), directory).items():
        leaf = table.leaf_of(name)
        if leaf is not None and leaf.path in paths:
            found.add(source.tensor.shape[0 if leaf.is_transposed(flax=source.flax) else -1])
    return found


def save_pretrained(
    directory: str | Path,
    params: dict[str, Any],
    config: Any,
    task: str,
    *,
    weights: str = "safetensors",
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
    max_shard_bytes: int = saving.MAX_SHARD_BYTES,
) -> None:
    """Writes what transformers' from_pretrained reads: config.json, weights, tokenizer files.

    `task`: a key of the family's heads. `weights`: "safetensors" with PyTorch's names, or "flax"
    for the flax_model.msgpack of transformers 4's Flax classes. `tokenizer`: a transformers
    tokenizer, or a directory to copy its files from. `generation`: the content of
    generation_config.json, by default, for a causal-lm, what the config says of it: config.json
    leaves out what the config's class has by default, and that is read from no class. The directory
    appears whole or not at all; an earlier model in it is replaced. Raises InputError if it holds
    anything else or cannot be written, and for parameters that are not those of the config or not
    finite.
    """
    saving.check_format(weights)
    configs.check_config(config, "the model's config")
    table = family_of(config).table
    flax = weights == "flax"
    architecture = table.architecture(task)
    leaves = flatten(params)
    _check_whole(leaves, module_parts(config, task)[1], architecture)
    parts: dict[str, dict[int, np.ndarray]] = {}
    axes: dict[str, int] = {}
    for path, array in leaves.items():
        leaf, host = table.by_path[path], np.asarray(array)
        if not all_finite(host):
            raise InputError(
                f"the parameter {path} holds NaN or infinite numbers, and nothing is written: "
                "every answer of such a model is NaN"
            )
        names = leaf.names(host.shape[0])
        for name, one in zip(names, host if leaf.stacked else [host], strict=True):
            stored = table.stored_name(name, task, flax=flax)
            axes[stored] = 0 if leaf.is_transposed(flax=flax) else -1
            parts.setdefault(stored, {})[leaf.part[0]] = leaf.to_stored(one, flax=flax)
    arrays = {name: join(tensor, axes[name]) for name, tensor in parts.items()}
    described = config.to_diff_dict() | {
        "architectures": [architecture],
        "dtype": str(next(iter(arrays.values())).dtype),
    }

    if generation is None and task == "causal-lm":
        generation = settings_to_keep(*generation_defaults(None, config))

    def fill(temporary: Path) -> None:
        saving.write_json(temporary / "config.json", described)
        if generation is not None:
            saving.write_json(temporary / saving.GENERATION_FILE, generation)
        saving.write_tokenizer(temporary, tokenizer)
        saving.write_weights(temporary, arrays, weights, max_shard_bytes)

    saving.write_directory(Path(directory), fill, replace=True)


def _check_whole(leaves: dict[str, Any], abstract: dict[str, Any], architecture: str) -> None:
    """Refuses parameters that nothing could load again as what the config describes."""
    expected = flatten(abstract)
    if leaves.keys() != expected.keys():
        raise InputError(
            f"the parameters are no {architecture}: "
            f"missing {sorted(expected.keys() - leaves.keys())}, "
            f"unexpected {sorted(leaves.keys() - expected.keys())}"
        )
    wrong = [
        f"{path}: found {x.dtype}{list(x.shape)}, expected {list(expected[path].shape)}"
        for path, x in leaves.items()
        if x.shape != expected[path].shape or x.dtype not in loading.WEIGHT_DTYPES
    ]
    if wrong:
        raise InputError(
            f"the parameters are not those of the config: {'; '.join(wrong[:10])}; set the config "
            "to the sizes of the parameters (vocab_size, num_labels, …), and save again"
        )
