"""From a checkpoint's tensors to a tree of arrays, each read once and put where it belongs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxllm.errors import InputError
from jaxllm.names.table import Leaf, Table
from jaxllm.pretrained.formats import Tensor
from jaxllm.pretrained.tensors import all_finite
from jaxllm.trees import flatten, map_params

WEIGHT_DTYPES = {np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)}
# XLA's CPU client takes a numpy buffer over, without a copy, if it is aligned to this many bytes.
ALIGNMENT = 64

Bounds = tuple[tuple[int, int], ...]  # (start, stop) in each axis


@dataclass(frozen=True)
class LoadReport:
    """`new`: paths of parameters that the checkpoint lacks; `unused`: tensors that none took."""

    new: list[str]
    unused: list[str]


@dataclass(frozen=True)
class Source:
    """A tensor under the name it has in the file. `flax`: a kernel [in, out], not [out, in]."""

    name: str
    tensor: Tensor
    flax: bool


def gather(table: Table, tensors: dict[str, Tensor], where: Path) -> dict[str, Source]:
    """Sources by canonical name, without buffers.

    Raises InputError where two tensors are one parameter.
    """
    sources: dict[str, Source] = {}
    for name, tensor in tensors.items():
        canonical, flax = table.canonical(name)
        if table.is_buffer(canonical):
            continue
        if canonical in sources:
            raise InputError(
                f"{where}: tensors {sources[canonical].name} and {name} are both {canonical}; "
                "remove one of them"
            )
        sources[canonical] = Source(name, tensor, flax)
    return sources


def merge_tied(
    ties: dict[str, str], sources: dict[str, Source], where: Path, *, check: bool
) -> list[str]:
    """Drops the copies of tied tensors from `sources`; returns their names in the file.

    `ties`: see `Table.ties`. Raises InputError if `check` and a copy differs from its original: an
    untied model would be computed wrongly.
    """
    dropped = []
    for duplicate, original in ties.items():
        copy = sources.pop(duplicate, None)
        if copy is None:
            continue
        if original not in sources:
            sources[original] = copy
            continue
        dropped.append(copy.name)
        if check:
            array = copy.tensor.read()
            if not np.array_equal(array.T if copy.flax else array, sources[original].tensor.read()):
                raise InputError(
                    f"{where}: {copy.name} differs from {sources[original].name}, to which it is "
                    "tied; untied output embeddings are not implemented for encoders, and a "
                    "decoder's config says of them tie_word_embeddings: false"
                )
    return dropped


def fit(
    table: Table,
    sources: dict[str, Source],
    shapes: dict[str, tuple[int, ...]],
    where: Path,
    dropped: Collection[str] = (),
) -> tuple[dict[str, list[Source]], list[str], list[str]]:
    """(the sources of each path, new paths, unused tensors) for parameters of these shapes.

    A head that the checkpoint has no tensor of is new, and so are the paths `dropped`; tensors of a
    head that the model lacks, and of these paths, are unused. Raises InputError with every other
    missing, surplus, wrongly shaped or wrongly typed tensor.
    """
    plan: dict[str, list[Source]] = {}
    new: list[str] = []
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrong": []}
    rows = {name: table.leaf_of(name) for name in sources}
    heads = {table.head(leaf) for leaf in rows.values() if leaf is not None}
    taken = set()
    for path, shape in shapes.items():
        leaf = table.by_path[path]
        head = table.head(leaf)
        if path in dropped or (head is not None and head not in heads):
            new.append(path)
            continue
        plan[path] = []
        for name in leaf.names(shape[0]):
            if name not in sources:
                problems["missing"].append(f"{name} (for {path})")
                continue
            source, tensor = sources[name], sources[name].tensor
            expected = leaf.stored_shape(shape[1:] if leaf.stacked else shape, flax=source.flax)
            if tensor.shape != expected:
                problems["wrong"].append(f"{source.name} {tensor.shape}, expected {expected}")
            elif tensor.dtype not in WEIGHT_DTYPES:
                problems["wrong"].append(f"{source.name} {tensor.dtype}, expected a float dtype")
            plan[path].append(source)
            taken.add(name)
    unused = []
    for name in sources.keys() - taken:
        leaf_or_none = rows[name]
        known = leaf_or_none is not None and table.head(leaf_or_none) is not None
        path = "" if leaf_or_none is None else leaf_or_none.path
        if known and (path not in shapes or path in dropped):
            unused.append(sources[name].name)
        else:
            problems["unexpected"].append(sources[name].name)
    if any(problems.values()):
        raise InputError(_misfit(problems, where))
    return plan, new, sorted(unused)


def _misfit(problems: dict[str, list[str]], where: Path, limit: int = 40) -> str:
    lines = [f"the tensors in {where} do not fit the model of its config"]
    for kind, names in problems.items():
        if names:
            more = f"\n    and {len(names) - limit} more" if len(names) > limit else ""
            listed = "".join(f"\n    {name}" for name in sorted(names)[:limit])
            lines.append(f"  {kind}: {len(names)}{listed}{more}")
    lines.append(
        "expected: the weights that belong to this config.json; for a classifier of another size "
        "set num_labels to its own"
    )
    return "\n".join(lines)


def load(
    table: Table,
    tensors: dict[str, Tensor],
    abstract: dict[str, Any],
    where: Path,
    init: Callable[[str], Any],
    dropped: Collection[str] = (),
    *,
    ties: dict[str, str],
) -> tuple[dict[str, Any], LoadReport]:
    """The parameter tree of `abstract`, with a report.

    Shapes are checked before anything is read. `dropped`: paths to take from `init`, whatever the
    checkpoint has. `ties`: see `Table.ties`.
    """
    leaves: dict[str, jax.ShapeDtypeStruct] = flatten(abstract)
    sources = gather(table, tensors, where)
    copies = merge_tied(ties, sources, where, check=table.tied_head in abstract)
    shapes = {path: struct.shape for path, struct in leaves.items()}
    plan, new, unused = fit(table, sources, shapes, where, dropped)
    arrays: dict[str, jax.Array] = {}
    # Largest first: while there is little else, so that the peak stays near the sum of all.
    for path in sorted(plan, key=lambda path: -leaves[path].size):
        arrays[path] = place(leaves[path], table.by_path[path], plan[path])
    for path in new:
        arrays[path] = _place_new(leaves[path], path, init)
    report = LoadReport(sorted(new), sorted(unused + copies))
    return map_params(lambda path, _: arrays[path], abstract), report


def place(struct: jax.ShapeDtypeStruct, leaf: Leaf, sources: list[Source]) -> jax.Array:
    """One parameter in its sharding, each shard its part only; from one source, or one a layer."""
    shape, sharding = struct.shape, struct.sharding
    whole = tuple((0, size) for size in shape)
    held = {whole}
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(shape).values()
        held = {_bounds(index or (), shape) for index in indices}  # replicas share one buffer
    parts = {bounds: _empty(bounds, struct.dtype) for bounds in held}
    layer_shape = shape[1:] if leaf.stacked else shape
    for layer, source in enumerate(sources):
        array = None
        for bounds, buffer in parts.items():
            target, inner = buffer, bounds
            if leaf.stacked:
                (start, stop), *rest = bounds
                if not start <= layer < stop:
                    continue
                target, inner = buffer[layer - start], tuple(rest)
            same_layout = source.tensor.shape == target.shape == layer_shape
            transposed = leaf.is_transposed(flax=source.flax)
            if same_layout and not transposed and source.tensor.dtype == target.dtype:
                source.tensor.read_into(target)
            else:
                if array is None:
                    array = leaf.to_ours(source.tensor.read(), layer_shape, flax=source.flax)
                with np.errstate(over="ignore"):  # told below
                    target[...] = array[tuple(slice(*pair) for pair in inner)]
            if not all_finite(target):
                raise InputError(
                    f"{source.tensor.file}: tensor {source.name} holds NaN or infinite numbers, "
                    "with which every answer would be NaN; expected finite float32 weights. Take "
                    "an earlier checkpoint, or download it again"
                )
    if sharding is None:
        return jax.device_put(parts[whole])
    return jax.make_array_from_callback(
        shape, sharding, lambda index: parts[_bounds(index or (), shape)], dtype=struct.dtype
    )


def _place_new(struct: jax.ShapeDtypeStruct, path: str, init: Callable[[str], Any]) -> jax.Array:
    array = init(path)
    if tuple(array.shape) != struct.shape:
        raise ValueError(f"init({path!r}) has shape {array.shape}, the model {struct.shape}")
    return jax.device_put(array, struct.sharding)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def _empty(bounds: Bounds, dtype: Any) -> np.ndarray:
    sizes = [stop - start for start, stop in bounds]
    count = int(np.prod(sizes)) * np.dtype(dtype).itemsize
    memory = np.empty(count + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count].view(dtype).reshape(sizes)
