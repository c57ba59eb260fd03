"""A model as it is stored: its module, and where on disk its parameters are.

It is one that transformers knows, one with layers behind its pooling, or ELECTRA's two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.errors import InputError
from jaxllm.models import Compute, Graph, Params, electra
from jaxllm.nn.pooling import LAYERS, DenseLayer
from jaxllm.nn.sharding import place, replicated
from jaxllm.pretrained import hf, sentence_transformers
from jaxllm.runtime import memory
from jaxllm.trees import flatten, leaf_at, map_params

Init = Callable[[str], Any]
GENERATOR = "generator"  # its directory within the discriminator's, and its name in the parameters
_SHARED_SIZES = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size")


class StoredModel(Protocol):
    """What training, evaluation and prediction need of a model."""

    @property
    def config(self) -> Any:
        """The transformers config."""

    @property
    def head(self) -> str:
        """What the model ends in, for messages."""

    @property
    def answers(self) -> str:
        """Where in its directory the model is that predicts."""

    def parts(self, compute: Compute) -> tuple[Graph, Params]:
        """See `models.module_parts`."""

    def init(self, seed: int) -> Params:
        """See `models.init_params`."""

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        """See `hf.save_pretrained`."""

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        """See `hf.load_params`."""


@dataclass(frozen=True)
class OneModel:
    """All parameters are those of one head.

    new: paths that are not taken from a checkpoint.
    given: arrays that are taken in place of a checkpoint's, by path.
    """

    head: str
    config: Any
    answers: str = "."
    new: frozenset[str] = frozenset()
    given: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, compute: Compute) -> tuple[Graph, Params]:
        return models.module_parts(self.config, self.head, compute)

    def init(self, seed: int) -> Params:
        return models.init_params(self.config, self.head, seed)

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        hf.save_pretrained(directory, params, self.config, self.head, tokenizer=tokenizer)

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        parts = directory, self.config, abstract
        return hf.load_params(*parts, init=init, dropped=self.new, given=self.given)[0]


@dataclass(frozen=True)
class SentenceModel(OneModel):
    """One model, and the layers behind its pooling in directories of their own."""

    layers: tuple[DenseLayer, ...] = ()

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        model = {name: tree for name, tree in params.items() if name != LAYERS}
        super().save(directory, model, tokenizer)
        for i in range(len(self.layers)):
            sentence_transformers.write_dense(directory, i, params[LAYERS][str(i)])

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        params = super().load(directory, abstract, init)
        mesh = jax.tree.leaves(abstract)[0].sharding.mesh
        layers = {str(i): layer.params for i, layer in enumerate(self.layers)}
        return params | {LAYERS: jax.device_put(layers, replicated(mesh))}


@dataclass(frozen=True)
class ElectraPair:
    """The discriminator in a model's directory, the generator in another.

    config: of the discriminator.
    sizes: of the generator, see `models.electra.generator_config`.
    generator_directory: null = `generator` within the discriminator's.
    """

    config: Any
    sizes: Any = None
    generator_directory: Path | None = None
    answers: str = GENERATOR
    head: str = "joint-pretraining"

    @classmethod
    def at(cls, path: str, generator: str | None, config: Any) -> "ElectraPair":
        """The pair at these paths; `config` is the discriminator's.

        Raises:
            InputError: there is no generator, or it belongs to another discriminator.
        """
        directory = hf.resolve(generator) if generator else hf.resolve(path) / GENERATOR
        if not (directory / "config.json").is_file():
            raise InputError(
                f"model.path: {path} is ELECTRA's discriminator alone, {directory} has no "
                "config.json; give the model it was trained with as model.generator"
            )
        own = hf.load_config(directory)
        sizes = {name: getattr(config, name) for name in _SHARED_SIZES}
        found = {name: getattr(own, name, None) for name in _SHARED_SIZES}
        if sizes != found:
            raise InputError(
                f"{directory}: found a model of {found}, expected a generator that shares its "
                f"embeddings with the discriminator at {path}, of {sizes}"
            )
        sizes = {name: getattr(own, name) for name in electra.GENERATOR_SIZES}
        return cls(config, sizes, directory)

    @cached_property
    def generator(self) -> Any:
        """The generator's config."""
        return electra.generator_config(self.config, self.sizes)

    @property
    def _models(self) -> tuple[OneModel, OneModel]:
        """The discriminator and the generator."""
        return OneModel("pretraining", self.config), OneModel("masked-lm", self.generator)

    def _module(self, compute: Compute, rngs: nnx.Rngs) -> nnx.Module:
        return electra.Joint(self.config, self.generator, compute, rngs)

    def parts(self, compute: Compute) -> tuple[Graph, Params]:
        return models.parts_of(lambda: self._module(compute, nnx.Rngs(params=0)))

    def init(self, seed: int) -> Params:
        return Graph.of(self._module(Compute(), nnx.Rngs(params=jax.random.key(seed))))[1]

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        discriminator, generator = self._models
        discriminator.save(directory, _discriminator(params), tokenizer)
        generator.save(directory / GENERATOR, _generator(params), tokenizer)

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        discriminator, generator = self._models
        params = discriminator.load(directory, _discriminator(abstract), init)
        source = self.generator_directory or directory / GENERATOR
        whole = generator.load(
            source, _generator(abstract), lambda path: init(f"{GENERATOR}/{path}")
        )
        tables = [whole["embeddings"][name] for name in electra.SHARED_TABLES]
        shared = [params["embeddings"][name] for name in electra.SHARED_TABLES]
        if not all(map(_equal, jax.tree.leaves(tables), jax.tree.leaves(shared))):
            raise InputError(
                f"{source}: its embeddings are not those of the discriminator at {directory}, with "
                "which it shares them; expected the two models of one pretraining"
            )
        own = map_params(lambda path, _: leaf_at(whole, path), abstract[GENERATOR])
        return {**params, GENERATOR: own}


def _discriminator(params: Any) -> Any:
    return {name: tree for name, tree in params.items() if name != GENERATOR}


def _generator(params: Any) -> Any:
    """The generator with the embeddings that it shares."""
    own = params[GENERATOR]
    shared = {name: params["embeddings"][name] for name in electra.SHARED_TABLES}
    return {**own, "embeddings": {**shared, **own.get("embeddings", {})}}


@jax.jit
def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.array_equal(a, b)


def initial_params(model: StoredModel, path: str | None, seed: int, abstract: Any) -> Any:
    """The parameters at `path`, or random ones; either is born in the shardings of `abstract`.

    `seed`: of random parameters, those too that the weights lack.
    """

    def random() -> Any:
        return model.init(seed)

    if path is None:
        way_out = "give model.config smaller sizes, or use more devices with mesh.fsdp"
        memory.check(memory.bytes_of(abstract), "model.config: the parameters", way_out)
        return jax.jit(random, out_shardings=map_params(lambda _, x: x.sharding, abstract))()

    def new(parameter: str) -> jax.Array:
        # The compiler drops all that this one parameter does not need.
        return jax.jit(lambda: flatten(random())[parameter])()

    return model.load(hf.resolve(path), abstract, new)


def load_saved(
    path: str | PathLike[str], model: StoredModel, mesh: Mesh, compute: Compute
) -> tuple[Path, Graph, Any]:
    """(directory, graph, parameters in their shardings) of a saved model with its head.

    Raises:
        InputError: no model there, or one whose weights lack the head.
    """
    directory = hf.resolve(path)
    graph, abstract = model.parts(compute)

    def refuse(parameter: str) -> Any:
        raise InputError(
            f"{path}: the model has no {model.head} head, {parameter} is not in its weights; "
            "expected a model that `jaxllm train` wrote, or another with such a head"
        )

    return directory, graph, model.load(directory, place(mesh, abstract), refuse)
