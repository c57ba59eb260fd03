"""Checkpoints from one format to the other, tensor by tensor, verified before they appear."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.errors import InputError
from jaxllm.models import family_of
from jaxllm.names.table import Table
from jaxllm.pretrained import loading, saving, sentence_transformers
from jaxllm.pretrained.configs import make_config, read_config
from jaxllm.pretrained.formats import read_tensors
from jaxllm.pretrained.location import resolve
from jaxllm.trees import leaf_at, map_params

log = logging.getLogger("jaxllm.pretrained")


@dataclass(frozen=True)
class ConvertReport:
    """`tensors` were written; `dropped` ones are copies of tied tensors, or buffers; the models of
    `task` had equal outputs.
    """

    architecture: str
    tensors: int
    dropped: list[str]
    task: str


def convert(source: str | Path, target: str | Path, weights: str) -> ConvertReport:
    """Writes the checkpoint at `source` to the new directory `target` in another format.

    `weights`: "safetensors" or "flax". Works on tensors, not on a model: dtypes stay, heads that
    the config's class lacks are carried over. Verified before `target` appears: every tensor is
    bit-equal when read again, and the models' outputs on a fixed batch are equal. Raises InputError
    for a tensor or attribute that is not known, or if `target` exists and is not empty.
    """
    saving.check_format(weights)
    directory = resolve(source)
    attributes = read_config(directory)
    config = make_config(attributes, str(directory / "config.json"))
    table = family_of(config).table
    tensors = read_tensors(directory)
    sources = loading.gather(table, tensors, directory)
    loading.merge_tied(table.ties(config), sources, directory, check=True)
    unknown = sorted(s.name for name, s in sources.items() if table.leaf_of(name) is None)
    if unknown:
        raise InputError(
            f"{directory}: tensors that are in no {config.model_type} model known here: "
            f"{', '.join(unknown)}; they cannot be converted"
        )
    architecture = next(iter(attributes.get("architectures") or ()), None)
    task = _task(table, config, architecture, sources)
    architecture = architecture or table.architecture(task)
    # Of a class that there is no module for, names stay what they are.
    named = task if table.architecture(task) == architecture else ""

    def fill(temporary: Path) -> None:
        arrays = {
            table.stored_name(name, named, flax=weights == "flax"): _stored_array(
                table, name, s, weights
            )
            for name, s in sources.items()
        }
        described = {**attributes, "model_type": config.model_type, "architectures": [architecture]}
        saving.write_json(temporary / "config.json", described)
        beside = (
            *saving.TOKENIZER_FILES,
            saving.GENERATION_FILE,
            saving.INPUT_FILE,
            *sentence_transformers.files(directory),
        )
        saving.copy_files(directory, temporary, beside)
        saving.write_weights(temporary, arrays, weights, saving.MAX_SHARD_BYTES)
        _verify_tensors(table, sources, temporary)
        _verify_outputs(table, config, task, directory, temporary)

    saving.write_directory(Path(target), fill, replace=False)
    kept = {source.name for source in sources.values()}
    dropped = sorted(tensors.keys() - kept)
    log.info(
        "%s: %s, %d tensors, bit-equal when read again; outputs equal (%s); left out, being "
        "copies or buffers: %s",
        target,
        architecture,
        len(sources),
        task,
        ", ".join(dropped) or "nothing",
    )
    return ConvertReport(architecture, len(sources), dropped, task)


def _task(table: Table, config: Any, architecture: str | None, names: Iterable[str]) -> str:
    """The task of transformers' class `architecture`; where the config names none, of the tensors.

    "base", which every checkpoint has the tensors of, for a class that there is no module for.
    """
    tasks = family_of(config).heads
    if architecture is not None:
        return next((task for task in tasks if table.architecture(task) == architecture), "base")
    leaves = (table.leaf_of(name) for name in names)
    paths = {leaf.path for leaf in leaves if leaf is not None}

    def is_whole(task: str) -> bool:
        needed: set[str] = set()
        try:
            map_params(lambda path, _: needed.add(path), models.module_parts(config, task)[1])
        except InputError:  # a config that this head cannot have
            return False
        return needed == paths

    return next(filter(is_whole, tasks), "base")


def _stored_array(table: Table, name: str, source: loading.Source, weights: str) -> np.ndarray:
    """Kernels of Flax, GPT-2's too, lie the other way round than PyTorch's."""
    leaf, array = table.leaf_of(name), source.tensor.read()
    is_kernel = leaf is not None and leaf.inputs is not None
    return array.T if is_kernel and source.flax != (weights == "flax") else array


def _as_torch(source: loading.Source) -> np.ndarray:
    return source.tensor.read().T if source.flax else source.tensor.read()


def _verify_tensors(table: Table, sources: dict[str, loading.Source], written: Path) -> None:
    again = loading.gather(table, read_tensors(written), written)
    different = sorted(sources.keys() ^ again.keys())
    for name in sources.keys() & again.keys():
        old, new = _as_torch(sources[name]), _as_torch(again[name])
        if (old.dtype, old.shape, old.tobytes()) != (new.dtype, new.shape, new.tobytes()):
            different.append(name)
    if different:
        raise InputError(f"converted tensors differ from their sources: {', '.join(different)}")


def _verify_outputs(table: Table, config: Any, task: str, source: Path, written: Path) -> None:
    graphdef, abstract = models.module_parts(config, task)
    rng = np.random.default_rng(0)
    T = min(16, models.max_tokens(config))
    input_ids = jnp.asarray(rng.integers(0, config.vocab_size, (2, T)), jnp.int32)
    run = jax.jit(models.apply_fn(graphdef))

    def outputs(directory: Path) -> list[np.ndarray]:
        params, _ = loading.load(
            table, read_tensors(directory), abstract, directory, init, ties=table.ties(config)
        )
        return [np.asarray(x) for x in jax.tree.leaves(run(params, input_ids=input_ids))]

    def init(path: str) -> np.ndarray:  # the pooler of a checkpoint without one, on both sides
        new = leaf_at(abstract, path)
        return np.zeros(new.shape, new.dtype)

    for old, new in zip(outputs(source), outputs(written), strict=True):
        if not np.array_equal(old, new, equal_nan=True):
            difference = float(np.max(np.abs(old - new)))
            raise InputError(
                f"the converted {task} model's outputs differ by up to {difference:.3g}"
            )
