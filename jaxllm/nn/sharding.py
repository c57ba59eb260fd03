"""Two tables: parameter path -> letters, letter -> mesh axes. And the mesh, and `constrain`.

The mesh has three axes: `data` splits the batch, `fsdp` the batch and the parameters' width,
`tensor` heads,
MLP width and vocabulary. All axes are Auto: the compiler places the collectives.
"""

import fnmatch
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.errors import InputError
from jaxllm.trees import map_params, path_name

AXES = ("data", "fsdp", "tensor")

# First match wins; the letters are the array's axes, so their number is its rank.
PARAMETER_LETTERS = [
    ("embeddings/*/embedding", "VD"),
    ("embeddings/norm/*", "D"),
    ("embeddings/project/kernel", "ED"),
    ("embeddings/project/bias", "D"),
    ("blocks/attention/output/kernel", "LNHD"),
    ("blocks/attention/output/bias", "LD"),
    ("blocks/attention/norm/*", "LD"),
    ("blocks/attention/query_norm/scale", "LH"),
    ("blocks/attention/key_norm/scale", "LH"),
    ("blocks/attention/*/kernel", "LDNH"),
    ("blocks/attention/*/bias", "LNH"),
    ("blocks/mlp/gate/kernel", "LDF"),
    ("blocks/mlp/gate/bias", "LF"),
    ("blocks/mlp/up/kernel", "LDF"),
    ("blocks/mlp/up/bias", "LF"),
    ("blocks/mlp/down/kernel", "LFD"),
    ("blocks/mlp/down/bias", "LD"),
    ("blocks/mlp/norm/*", "LD"),
    ("final_norm/*", "D"),
    ("pooler/kernel", "DE"),
    ("pooler/bias", "E"),
    ("classifier/kernel", "DC"),
    ("classifier/bias", "C"),
    ("classification/dense/kernel", "DE"),
    ("classification/dense/bias", "E"),
    ("classification/output/kernel", "DC"),
    ("classification/output/bias", "C"),
    ("qa_outputs/kernel", "DC"),
    ("qa_outputs/bias", "C"),
    ("next_sentence/kernel", "DC"),
    ("next_sentence/bias", "C"),
    ("discriminator/dense/kernel", "DE"),
    ("discriminator/dense/bias", "E"),
    ("discriminator/output/kernel", "DC"),
    ("discriminator/output/bias", "C"),
    ("mlm/dense/kernel", "DE"),
    ("mlm/dense/bias", "E"),
    ("mlm/norm/*", "D"),
    ("mlm/bias", "V"),
    ("head/dense/kernel", "DE"),
    ("head/dense/bias", "E"),
    ("head/norm/*", "D"),
    ("decoder/bias", "V"),
    ("lm_head/kernel", "DV"),
    ("score/kernel", "DC"),
    ("score/bias", "C"),
    ("dense/*/kernel", "EE"),
    ("dense/*/bias", "E"),
    # LoRA's A, from a layer's inputs to R, and B, from there to its outputs.
    ("embeddings/project/lora_a", "ER"),
    ("embeddings/*/lora_a", "VR"),
    ("embeddings/*/lora_b", "RD"),
    ("blocks/attention/output/lora_a", "LNHR"),
    ("blocks/attention/output/lora_b", "LRD"),
    ("blocks/attention/*/lora_a", "LDR"),
    ("blocks/attention/*/lora_b", "LRNH"),
    ("blocks/mlp/down/lora_a", "LFR"),
    ("blocks/mlp/down/lora_b", "LRD"),
    ("blocks/mlp/*/lora_a", "LDR"),
    ("blocks/mlp/*/lora_b", "LRF"),
]

# Letters not named here (L, H, T, C, E, …) are whole on every device.
LETTER_AXES: dict[str, str | tuple[str, ...]] = {
    "B": ("data", "fsdp"),
    "D": "fsdp",
    "N": "tensor",
    "F": "tensor",
    "V": "tensor",
}
# An activation's batch takes both batch axes, so its width stays whole.
ACTIVATION_AXES = {letter: LETTER_AXES[letter] for letter in "BNF"}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Any = None) -> Mesh:
    """A mesh over `devices` (default: all); data=-1 takes what fsdp and tensor leave."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    rest = fsdp * tensor
    if data == -1:
        data = max(devices.size // rest, 1)
    if data * rest != devices.size:
        raise InputError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} has {data * rest} places, "
            f"there are {devices.size} "
            "devices; choose sizes whose product is the number of devices, or mesh.data=-1"
        )
    return Mesh(devices.reshape(data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch's rows are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, everything else whole."""
    return NamedSharding(mesh, P(LETTER_AXES["B"]))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def letters_of(path: str) -> str | None:
    """The letters of a parameter: those of the longest tail of its path that is in the table.

    A model within a model (`generator/blocks/…`) and an optimizer's moments (`0/mu/blocks/…`) have
    paths in front of those of their parameters.
    """
    parts = path.split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((letters for tail in tails if (letters := _row(tail)) is not None), None)


def _row(path: str) -> str | None:
    rows = (letters for pattern, letters in PARAMETER_LETTERS if fnmatch.fnmatchcase(path, pattern))
    return next(rows, None)


def parameter_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of one parameter by the tables. Raises InputError on no match, wrong rank or an
    indivisible size.
    """
    letters = letters_of(path)
    if letters is None:
        raise ValueError(f"parameter {path} matches no row of PARAMETER_LETTERS; add one")
    if len(letters) != len(shape):
        raise ValueError(
            f"parameter {path} has shape {shape}, its letters are {letters}; mend the table"
        )
    spec = []
    for letter, size in zip(letters, shape, strict=True):
        axis = LETTER_AXES.get(letter)
        if letter == "V" and axis is not None and size % mesh.shape[axis]:
            # Vocabularies (30522, positions, token types) seldom divide: such a table stays whole
            # on that axis.
            axis = None
        if axis is not None and size % mesh.shape[axis]:
            raise InputError(
                f"parameter {path}: axis {letter} of {size} does not divide over "
                f"mesh.{axis}={mesh.shape[axis]}; "
                f"choose a mesh.{axis} that divides {size}"
            )
        spec.append(axis)
    return NamedSharding(mesh, P(*spec))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """Shardings for a tree whose leaves are parameters, or follow them (optimizer moments), or are
    scalars.

    A leaf's rank must be that of its parameter's letters, else it is replicated (a step count, a
    factored moment).
    """

    def leaf(path: tuple, x: Any) -> NamedSharding:
        name = path_name(path)
        letters = letters_of(name)
        if letters is not None and len(letters) == len(x.shape):
            return parameter_sharding(mesh, name, x.shape)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def in_mesh() -> bool:
    """Whether the mesh of the current context has this module's axes, and leaves them to XLA."""
    mesh = jax.sharding.get_abstract_mesh()
    return set(AXES) <= set(mesh.axis_names) and not _has_explicit(mesh)


def _has_explicit(mesh: Any) -> bool:
    return AxisType.Explicit in mesh.axis_types


def check_not_explicit(arrays: Any) -> None:
    """InputError for a tree with an array that is split over Explicit axes: there a program has to
    say how each of its own arrays is split, and the models leave that to the compiler.
    """
    for x in jax.tree.leaves(arrays):
        sharding = jax.typeof(x).sharding
        if _has_explicit(sharding.mesh) and any(axis is not None for axis in sharding.spec):
            raise InputError(
                f"an array {list(x.shape)} is split as {sharding.spec} over a mesh whose axes are "
                "Explicit, as those of jax.make_mesh are by default; make the mesh with "
                f"axis_types=(jax.sharding.AxisType.Auto,) * {len(sharding.mesh.axis_names)}"
            )


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Pin an activation's layout under the mesh of the current `jax.sharding` context; without one,
    or under one of other axes, nothing.
    """
    if not in_mesh():
        return x
    return jax.lax.with_sharding_constraint(
        x, P(*(ACTIVATION_AXES.get(letter) for letter in letters))
    )


def place(mesh: Mesh, abstract: Any) -> Any:
    """The abstract parameters with their shardings."""

    def leaf(path: str, x: Any) -> jax.ShapeDtypeStruct:
        sharding = parameter_sharding(mesh, path, x.shape)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return map_params(leaf, abstract)
