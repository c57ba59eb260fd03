"""Low-rank adaptation (LoRA, Hu et al., 2021): y = x W + (alpha / rank) dropout(x) A B.

The layers of a model's stack that are adapted get A (`lora_a`) and B (`lora_b`) as parameters
beside their own, whose paths stay what they are. Models know nothing of it: `adapted` puts a layer
around each of them in the graph, and the graph's function stays pure.
"""

import fnmatch
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.config.fields import LoraConfig
from jaxllm.errors import InputError
from jaxllm.models import Graph, Params
from jaxllm.nn.layers import Dense, Embed, Key, dropout, is_embedded
from jaxllm.trees import flatten, leaf_at, unflatten

A, B = "lora_a", "lora_b"
WEIGHTS = ("kernel", "embedding")  # what a layer's A B is added to
# Heads whose decoder is the word table, where there is no layer of its own for it.
TIED = ("masked-lm", "pretraining", "joint-pretraining", "causal-lm")


class LoraDense(nnx.Module):
    """A dense layer and what is added to it: lora_a [*in, R], lora_b [R, *out].

    `key` turns the dropout on; of stacked layers, all three have a leading L axis.
    """

    def __init__(
        self, base: Dense, a: Any, b: Any, scale: float, rate: float, key: jax.Array | None = None
    ):
        self._base = base
        self.lora_a, self.lora_b = nnx.Param(a), nnx.Param(b)
        self.scale, self.rate = scale, rate
        self.key = None if key is None else nnx.Param(key)

    def with_key(self, key: jax.Array) -> "LoraDense":
        """The same with dropout by this key, uint32 [2], or [L, 2] of stacked layers."""
        a, b = self.lora_a[...], self.lora_b[...]
        return LoraDense(self._base, a, b, self.scale, self.rate, key)

    def __call__(self, x: jax.Array) -> jax.Array:
        y, dtype = self._base(x), self._base.dtype
        a, b = self.lora_a[...].astype(dtype), self.lora_b[...].astype(dtype)
        rank = a.shape[-1]
        x = dropout(x, self.rate, None if self.key is None else self.key[...])
        x = x.astype(dtype).reshape(*x.shape[: x.ndim - self._base.num_in], -1)
        added = (x @ a.reshape(-1, rank)) @ b.reshape(rank, -1)
        return y + self.scale * added.reshape(y.shape)


class LoraEmbed(nnx.Module):
    """An embedding and what is added to it: lora_a [V, R], lora_b [R, D]; ids have no dropout."""

    def __init__(self, base: Embed, a: Any, b: Any, scale: float, rate: float):
        self._base = base
        self.lora_a, self.lora_b = nnx.Param(a), nnx.Param(b)
        self.scale = scale

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x, dtype = self._base(tokens), self._base.dtype
        if is_embedded(tokens):
            return x
        rows = jnp.take(self.lora_a[...], tokens, axis=0).astype(dtype)
        return x + self.scale * (rows @ self.lora_b[...].astype(dtype))


@dataclass(frozen=True)
class LoraGraph(Graph):
    """The graph of a model with adapters. `dropout`: whether a key reaches the adapters, too."""

    dropout: bool = False

    def merge(self, params: Params) -> Any:
        """The module, or the function that hands it to a head's call with a key for each layer."""
        module = super().merge(params)
        return _WithKeys(module) if self.dropout else module


class _WithKeys:
    """A model whose call gives each of its adapters a key of its own."""

    def __init__(self, module: Any):
        self._module = module

    def __call__(self, *args: Any, key: Key = None, **inputs: Any) -> Any:
        if key is not None:
            key, own = jax.random.split(key)
            for i, (path, (parent, name)) in enumerate(_layers(self._module.stack).items()):
                layer = getattr(parent, name)
                if isinstance(layer, LoraDense):
                    # Arrays like the parameters: the scan over layers hands each its own.
                    words = jax.random.fold_in(own, i)
                    if _is_stacked(path):
                        words = jax.random.split(words, layer.lora_a.shape[0])
                    setattr(parent, name, layer.with_key(jax.random.key_data(words)))
        return self._module(*args, key=key, **inputs)


def _layers(module: nnx.Module, front: str = "") -> dict[str, tuple[nnx.Module, str]]:
    """The dense and embedding layers within a module, adapted or not: by its path, the module
    that has it and its name there.
    """
    found: dict[str, tuple[nnx.Module, str]] = {}
    for name, part in vars(module).items():
        if isinstance(part, Dense | Embed | LoraDense | LoraEmbed):
            found[f"{front}{name}"] = (module, name)
        elif isinstance(part, nnx.Module):
            found |= _layers(part, f"{front}{name}/")
    return found


def _is_stacked(path: str) -> bool:
    return path.startswith("blocks/")


def weight_of(params: Any, path: str) -> str:
    """The path of the parameter that the layer at `path` is adapted by."""
    own = leaf_at(params, path)
    return f"{path}/{next(name for name in WEIGHTS if name in own)}"


def targets(graph: Graph, abstract: Params, head: str, config: LoraConfig) -> list[str]:
    """The paths of the layers that the patterns of `lora.targets` name.

    Raises:
        InputError: a pattern that names none, or the word table where it decodes, too.
    """
    known = list(_layers(graph.merge(abstract).stack))
    for pattern in config.targets:
        if not fnmatch.filter(known, pattern):
            raise InputError(
                f"lora.targets: pattern {pattern!r} matches no layer; the layers are "
                f"{', '.join(known)}"
            )
    found = [path for path in known if any(fnmatch.fnmatchcase(path, p) for p in config.targets)]
    check_tied(found, head, abstract, "lora.targets")
    return found


def check_tied(paths: list[str], head: str, abstract: Params, where: str) -> None:
    """Refuses an adapter of the word table of a model that decodes with it: beside the table it
    adapts the embedding alone, merged into it the decoder too.
    """
    if "embeddings/word" in paths and head in TIED and "lm_head" not in abstract:
        raise InputError(
            f"{where}: found an adapter of embeddings/word, but this model's decoder is the same "
            "table, and merging would change it, too; expected adapters of other layers"
        )


def adapted(
    graph: Graph, abstract: Params, paths: list[str], config: LoraConfig
) -> tuple[LoraGraph, Params]:
    """(graph, abstract parameters) of the model with adapters at `paths`.

    Where B is zero, as at the start, or A is, outputs are those of the model without them.
    """
    module = graph.merge(abstract)
    layers = _layers(module.stack)
    for path in paths:
        parent, name = layers[path]
        layer = getattr(parent, name)
        weight = leaf_at(abstract, weight_of(abstract, path))
        inputs = _is_stacked(path) + (layer.num_in if isinstance(layer, Dense) else 1)
        shapes = (
            (*weight.shape[:inputs], config.rank),
            (*weight.shape[: int(_is_stacked(path))], config.rank, *weight.shape[inputs:]),
        )
        a, b = (jax.ShapeDtypeStruct(shape, weight.dtype) for shape in shapes)
        kind = LoraDense if isinstance(layer, Dense) else LoraEmbed
        setattr(parent, name, kind(layer, a, b, config.alpha / config.rank, config.dropout))
    whole, params = Graph.of(module)
    return LoraGraph(whole.graphdef, whole.paths, config.dropout > 0), params


def init(abstract: Params, seed: int) -> Params:
    """Random adapters for the abstract parameters of `adapted`, as peft draws them: of a dense
    layer A uniform within 1 / sqrt(inputs) and B zero, of an embedding A zero and B normal.
    """
    key = jax.random.fold_in(jax.random.key(seed), 0x10A)  # not those of the model's own layers
    found = {}
    for i, (path, x) in enumerate(sorted(flatten(abstract).items())):
        layer, _, name = path.rpartition("/")
        is_dense = name in (A, B) and weight_of(abstract, layer).endswith("kernel")
        own = jax.random.fold_in(key, i)
        if name == (B if is_dense else A):
            found[path] = jnp.zeros(x.shape, x.dtype)
        elif name == A:
            inputs = math.prod(x.shape[_is_stacked(path) : -1])
            found[path] = jax.random.uniform(own, x.shape, x.dtype, -1, 1) / math.sqrt(inputs)
        elif name == B:
            found[path] = jax.random.normal(own, x.shape, x.dtype)
    return unflatten(found)


def is_adapter(path: str) -> bool:
    """Whether a parameter is an adapter's A or B."""
    return path.endswith((f"/{A}", f"/{B}"))


def merge(params: Params, scale: float) -> Params:
    """The parameters of the model without adapters whose outputs are the same, each in the
    sharding that it had: W + scale A B in the place of W.
    """
    flat = flatten(params)
    merged = {path: x for path, x in flat.items() if not is_adapter(path)}
    for path in [path for path in flat if path.endswith(f"/{A}")]:
        layer = path.removesuffix(f"/{A}")
        weight = weight_of(params, layer)
        w, stacked = merged[weight], _is_stacked(layer)
        sharding = getattr(w, "sharding", None)  # numpy's and traced arrays have none
        add = jax.jit(_add, static_argnums=(3, 4), out_shardings=sharding)
        merged[weight] = add(w, flat[path], flat[f"{layer}/{B}"], stacked, scale)
    return unflatten(merged)


def _add(w: jax.Array, a: jax.Array, b: jax.Array, stacked: bool, scale: float) -> jax.Array:
    lead, rank = w.shape[: int(stacked)], a.shape[-1]
    # In full precision: a GPU's default would round a product of float32.
    product = jnp.matmul(
        a.reshape(*lead, -1, rank), b.reshape(*lead, rank, -1), precision="highest"
    )
    return w + scale * product.reshape(w.shape)
