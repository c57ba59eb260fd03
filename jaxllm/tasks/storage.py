"""Where a task's parameters lie on disk: one model that transformers knows, or ELECTRA's two."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models import electra
from jaxllm.pooling import LAYERS, DenseLayer
from jaxllm.pretrained import hf, sentence_transformers
from jaxllm.sharding import map_params, replicated

Init = Callable[[str], Any]
GENERATOR = "generator"  # its directory within the discriminator's, and its name in the parameters
_SHARED_SIZES = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size")


class Storage(Protocol):
    """Writes and reads the parameters of a task."""

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        """See `hf.save_pretrained`."""

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        """See `hf.load_params`."""

    @property
    def answers(self) -> str:
        """Where in the directory the model is that predicts."""


@dataclass(frozen=True)
class OneModel:
    """All parameters are those of one head. `new`: paths that are not taken from a checkpoint."""

    head: str
    config: Any
    answers: str = "."
    new: frozenset[str] = frozenset()

    def save(self, directory: Path, params: Any, tokenizer: Any) -> None:
        hf.save_pretrained(directory, params, self.config, self.head, tokenizer=tokenizer)

    def load(self, directory: Path, abstract: Any, init: Init) -> Any:
        return hf.load_params(directory, self.config, abstract, init=init, dropped=self.new)[0]


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

    config: as for `models.electra.joint`.
    generator_directory: null = `generator` within the discriminator's.
    """

    config: Any
    generator_directory: Path | None = None
    answers: str = GENERATOR

    @classmethod
    def at(cls, path: str, generator: str | None, config: Any) -> "ElectraPair":
        """The pair at these paths; `config`, the discriminator's, gets the generator's sizes.

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
        config.generator = {name: getattr(own, name) for name in electra.GENERATOR_SIZES}
        return cls(config, directory)

    @property
    def _models(self) -> tuple[OneModel, OneModel]:
        """The discriminator and the generator."""
        generator = electra.generator_config(self.config)
        alone = type(self.config).from_dict(self.config.to_dict() | {"generator": None})
        return OneModel("pretraining", alone), OneModel("masked-lm", generator)

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
        flat: dict[str, Any] = {}
        map_params(flat.__setitem__, whole)
        own = map_params(lambda path, _: flat[path], abstract[GENERATOR])
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
