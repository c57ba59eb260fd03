"""How one family's parameters are called and laid out in other libraries' checkpoints.

A family is a table of `Module`s. Everything in both directions follows from it: which tensors a
parameter is made of (stacked layers are one tensor each), their names in PyTorch and in Flax, and
which of them are transposed.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from jaxllm.names.attributes import Attributes

# kind -> (our leaf, PyTorch's, Flax's)
LEAVES = {
    "dense": (("kernel", "weight", "kernel"), ("bias", "bias", "bias")),
    "conv1d": (("kernel", "weight", "kernel"), ("bias", "bias", "bias")),
    "norm": (("scale", "weight", "scale"), ("bias", "bias", "bias")),
    "rms": (("scale", "weight", "weight"),),
    "embedding": (("embedding", "weight", "embedding"),),
    "bias": (("bias", "bias", "bias"),),
}
# task -> how the name of transformers' class ends
CLASS_SUFFIXES = {
    "base": "Model",
    "causal-lm": "ForCausalLM",
    "masked-lm": "ForMaskedLM",
    "pretraining": "ForPreTraining",
    "next-sentence": "ForNextSentencePrediction",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}
FLAX_LEAVES = {"kernel", "scale", "embedding"}  # as the last part of a name, a sign of Flax


@dataclass(frozen=True)
class Module:
    """A row: our path, and the checkpoint's with `{}` for the layer.

    `inputs`: how many leading axes of our kernel are summed over; the rest are its outputs. Both
    are flat in checkpoints. `part` (i, n): the i-th of n equal parts of a fused layer's outputs, a
    row for each part. `first`: the layer that our first one is, where the checkpoint's lack some.
    A "conv1d" is GPT-2's linear layer, whose kernels lie the other way round than all others:
    [in, out] in PyTorch, [out, in] in Flax.
    """

    path: str
    name: str
    kind: Literal["dense", "conv1d", "norm", "rms", "embedding", "bias"]
    inputs: int = 1
    part: tuple[int, int] = (0, 1)
    first: int = 0


@dataclass(frozen=True)
class Leaf:
    """One parameter: our path, the tensor's canonical (PyTorch) name, its Flax name."""

    path: str
    name: str
    flax_name: str
    inputs: int | None  # None: no kernel
    part: tuple[int, int] = (0, 1)
    first: int = 0
    conv1d: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """The tensors it is made of, in order."""
        if not self.stacked:
            return [self.name]
        return [self.name.format(self.first + i) for i in range(layers)]

    def stored_shape(self, shape: tuple[int, ...], *, flax: bool) -> tuple[int, ...]:
        """The shape of the checkpoint's tensor that holds one layer's parameter of this shape."""
        *lead, outputs = self._flat_shape(shape)
        whole = (*lead, outputs * self.part[1])
        return whole[::-1] if self.is_transposed(flax=flax) else whole

    def is_transposed(self, *, flax: bool) -> bool:
        """Whether a checkpoint's tensor is a kernel [out, in]; ours are [in, out]."""
        return self.inputs is not None and flax == self.conv1d

    def _flat_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.inputs is None:
            return shape if self.path.endswith(("embedding", "scale")) else (math.prod(shape),)
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...], *, flax: bool) -> np.ndarray:
        """This parameter in our layout out of the stored array."""
        array = transposed(array) if self.is_transposed(flax=flax) else array
        i, n = self.part
        return np.split(array, n, axis=-1)[i].reshape(shape)

    def to_stored(self, array: np.ndarray, *, flax: bool) -> np.ndarray:
        """A view of one layer's parameter in a checkpoint's layout, to be joined where fused."""
        array = array.reshape(self._flat_shape(array.shape))
        return array.T if self.is_transposed(flax=flax) else array


def transposed(array: np.ndarray) -> np.ndarray:
    """A copy, made 64 rows at a time so that they stay in the cache: [3072, 768] takes a third of
    the time.
    """
    out = np.empty(array.shape[::-1], array.dtype)
    for start in range(0, len(array), 64):
        out[:, start : start + 64] = array[start : start + 64].T
    return out


def join(parts: dict[int, np.ndarray], axis: int) -> np.ndarray:
    """The tensor of a checkpoint from all its parts by number; `axis`: of its outputs."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([parts[i] for i in sorted(parts)], axis=axis)


@dataclass(frozen=True)
class Table:
    """One model type's table, and what its checkpoints of all ages need to be read by it."""

    modules: tuple[Module, ...]
    attributes: Attributes  # of its config
    prefix: str  # of every tensor outside the heads; bare models are stored without it
    class_prefix: str  # of the names of transformers' classes
    old_names: tuple[tuple[str, str], ...] = ()  # (regular expression, replacement)
    buffers: str = r"embeddings\.(position_ids|token_type_ids)$"  # tensors that are no parameters
    tied: dict[str, str] = field(default_factory=dict)  # duplicate -> the tensor it repeats
    tied_head: str = "mlm"  # the head that uses them
    trunk: tuple[str, ...] = ("embeddings", "blocks")  # first parts that every checkpoint has
    class_names: dict[str, str] = field(default_factory=dict)  # by task, where they are irregular
    prefixes: dict[str, str] = field(default_factory=dict)  # by task, where it is not `prefix`

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(
            Leaf(
                f"{module.path}/{ours}",
                f"{module.name}.{torch}",
                f"{module.name}.{flax}".replace(".", "/"),
                module.inputs if ours == "kernel" else None,
                module.part,
                module.first,
                module.kind == "conv1d",
            )
            for module in self.modules
            for ours, torch, flax in LEAVES[module.kind]
        )

    @cached_property
    def by_path(self) -> dict[str, Leaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    @cached_property
    def by_name(self) -> dict[str, Leaf]:
        return {leaf.name: leaf for leaf in self.leaves}

    def architecture(self, task: str) -> str:
        """The name of transformers' class."""
        return self.class_names.get(task) or self.class_prefix + CLASS_SUFFIXES[task]

    def is_class(self, name: str) -> bool:
        """Whether it is the name of a class of transformers for this model type."""
        regular = name == f"{self.class_prefix}Model" or name.startswith(f"{self.class_prefix}For")
        return regular or name in self.class_names.values()

    def leaf_of(self, name: str) -> Leaf | None:
        """The row of a canonical name; None for a tensor that is not in the table."""
        return self.by_name.get(re.sub(r"\.\d+\.", ".{}.", name, count=1)) or self.by_name.get(name)

    def canonical(self, name: str) -> tuple[str, bool]:
        """(name as PyTorch's current classes have it, whether a kernel lies as in Flax).

        Takes Flax names, names of old releases, of wrapped models, and of bare models without the
        prefix.
        """
        name = re.sub(r"^(params\.|module\.)+", "", name.replace("/", "."))
        stem, _, last = name.rpartition(".")
        if last in FLAX_LEAVES:
            name = f"{stem}.weight"
        for pattern, replacement in self.old_names:
            name = re.sub(pattern, replacement, name)
        if any(
            leaf.name.startswith(f"{self.prefix}.{name.split('.')[0]}.") for leaf in self.leaves
        ):
            name = f"{self.prefix}.{name}"
        return name, last == "kernel"

    def flax_name(self, name: str) -> str:
        """The Flax name of a canonical name that is in the table."""
        leaf, layer = self.leaf_of(name), re.search(r"\.(\d+)\.", name)
        assert leaf is not None
        return leaf.flax_name.format(layer[1] if layer else "")

    def is_buffer(self, name: str) -> bool:
        return re.search(self.buffers, name) is not None

    def ties(self, config: Any) -> dict[str, str]:
        """Duplicates and the tensors that they repeat, in checkpoints of this config."""
        return self.tied if getattr(config, "tie_word_embeddings", True) else {}

    def stored_name(self, name: str, task: str, *, flax: bool) -> str:
        """The name in a checkpoint of a task's class, of a canonical name that is in the table."""
        stored = self.flax_name(name) if flax else name
        if task == "base":
            return re.sub(rf"^{self.prefix}[./]", "", stored)
        return re.sub(rf"^{self.prefix}(?=[./])", self.prefixes.get(task, self.prefix), stored)

    def head(self, leaf: Leaf) -> str | None:
        """First part of a head's path, all of which a checkpoint may lack; None in the trunk."""
        first = leaf.path.split("/")[0]
        return None if first in self.trunk else first
