"""The model of a task: its config, its parameters in their shardings, its labels."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.attention.backends import ATTENDS
from jaxllm.config.fields import Config, ModelConfig
from jaxllm.data.tokenizer import load_tokenizer, vocabulary_size
from jaxllm.errors import InputError
from jaxllm.models import Compute, Graph
from jaxllm.nn.sharding import batch_sharding, batch_shards, parameter_sharding
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import FAMILIES, hf
from jaxllm.pretrained.saving import INPUT_FILE
from jaxllm.runtime import memory
from jaxllm.tasks.storage import OneModel, TaskModel
from jaxllm.tasks.task import Task
from jaxllm.training.objectives import Apply
from jaxllm.trees import flatten, map_params

logger = logging.getLogger("jaxllm")

_ROUNDED_UP = 128  # sizes of vocabularies are rounded up to a multiple of so many at most

# Tasks whose head has another name; of a pretrained BERT, prediction uses the one that fills masks.
HEADS = {"sentence-embedding": "base", "pretraining": "masked-lm"}
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def head_config(config: Config, names: list[str]) -> Any:
    """The transformers config at `model.path`, or of `model.config`, with a head for these labels.

    Raises:
        InputError: no such model, or attributes that are not implemented or that follow from the
            labels.
    """
    head: dict[str, Any] = {
        "num_labels": len(names) or 1,
        "problem_type": config.model.problem_type,
    }
    if names:
        head["id2label"] = dict(enumerate(names))
        head["label2id"] = {name: i for i, name in enumerate(names)}
    for name in ("num_labels", "id2label", "label2id", "problem_type"):
        if name in config.model.config:
            raise InputError(
                f"model.config: {name} follows from the labels; remove it, and give data.labels or "
                "model.problem_type instead"
            )
    return hf.load_config(config.model.path, **config.model.config, **head)


def initial_params(config: Config, task: Task, abstract: Any) -> Any:
    """Pretrained parameters, or random ones; either is born in the shardings of `abstract`."""

    def random() -> Any:
        return task.model.init(config.train.seed)

    if config.model.path is None:
        way_out = "give model.config smaller sizes, or use more devices with mesh.fsdp"
        memory.check(memory.bytes_of(abstract), "model.config: the parameters", way_out)
        return jax.jit(random, out_shardings=map_params(lambda _, x: x.sharding, abstract))()

    def new(path: str) -> jax.Array:
        # The compiler drops all that this one parameter does not need.
        return jax.jit(lambda: flatten(random())[path])()

    return task.model.load(hf.resolve(config.model.path), abstract, new)


def check_batch(
    key: str, rows: int, length: int, model_config: Any, mesh: Mesh, *, parts: int = 1
) -> None:
    """Refuses a batch that no device could hold its part of, before it is made.

    Counted are three int32 arrays of ids, and one hidden state, in float32 or two in bfloat16.

    key: what `rows` is called in a message. length: tokens of a row, at least. parts: of the batch,
    which are computed one after the other.
    """
    tokens = rows * length // batch_shards(mesh)
    memory.check(
        tokens * 12 + tokens // parts * 4 * model_config.hidden_size,
        f"{key}: a batch of {rows} rows",
        "choose a smaller one",
    )


def computation(model: ModelConfig, mesh: Mesh) -> Compute:
    """How the model is computed on the mesh's devices.

    Raises:
        InputError: attention that does not run on the mesh's devices.
    """
    attention = attention_on(model.attention, mesh)
    return Compute(model.dtype, attention, model.remat, model.unroll)


def attention_on(name: str, mesh: Mesh) -> str:
    """The name in ATTENDS that `name`, a value of model.attention, has on the mesh's devices.

    Raises:
        InputError: it does not run there.
    """
    here = mesh.devices.flat[0].platform
    if name == "auto":
        return "blocked" if here == "cpu" else "xla"
    needed = ATTENDS[name].platform
    if needed not in (None, here):
        raise InputError(
            f"model.attention: {name} runs on a {str(needed).upper()}, and JAX found a "
            f"{here.upper()}; set model.attention: auto"
        )
    return name


def load_saved(
    path: str, model: TaskModel, mesh: Mesh, compute: Compute
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


@dataclass(frozen=True)
class SavedModel:
    """A saved model on its devices, and what it needs to read text."""

    directory: Path
    config: Any
    tokenizer: Any
    form: InputFormat
    mesh: Mesh
    graph: Graph
    params: Any

    @classmethod
    def load(cls, path: str, mesh: Mesh) -> "SavedModel":
        """The model at `path`, for the task that `InputFormat.load` finds.

        Raises:
            InputError: no model there, one whose weights lack the task's head, no tokenizer.
        """
        directory = hf.resolve(path)
        config = hf.load_config(directory)
        tokenizer = load_tokenizer(directory)
        longest = min(models.max_tokens(config), tokenizer.model_max_length)
        form = InputFormat.load(
            directory, max_length=longest, architectures=config.architectures or ()
        )
        pair = form.text_pair is not None or form.task == "multiple-choice"
        key = f"{directory / INPUT_FILE}: max_length"
        check_fit(config, tokenizer, form.max_length, pair=pair, key=key)
        head = HEADS.get(form.task, form.task)
        compute = Compute(attention=attention_on("auto", mesh))
        _, graph, params = load_saved(path, OneModel(head, config), mesh, compute)
        return cls(directory, config, tokenizer, form, mesh, graph, params)

    def forward(self, pick: Callable[[Any], Any]) -> Callable[[dict[str, np.ndarray]], Any]:
        """The jitted model: arrays of rows to what `pick` takes of its output."""
        return self.compiled(lambda model, rows: pick(model(**rows)))

    def compiled(
        self, compute: Callable[[Apply, dict[str, jax.Array]], Any]
    ) -> Callable[[dict[str, np.ndarray]], Any]:
        """`compute(model, rows)`, jitted and on the mesh; `model(**rows)` is the model's output."""
        apply = models.apply_fn(self.graph)
        jitted = jax.jit(lambda params, rows: compute(partial(apply, params), rows))

        def call(rows: dict[str, np.ndarray]) -> Any:
            with jax.set_mesh(self.mesh):
                return jitted(self.params, jax.device_put(rows, batch_sharding(self.mesh)))

        return call


def problem_type(model_config: Any) -> str:
    """What the config says; else, as in transformers, regression for one label, one of several."""
    problem = model_config.problem_type
    problem = problem or ("regression" if model_config.num_labels == 1 else SINGLE)
    if problem == "regression" and model_config.num_labels != 1:
        raise InputError(f"regression with {model_config.num_labels} values, expected one")
    return problem


def label_names(model_config: Any) -> list[str]:
    """The names in the order of their ids; empty for regression."""
    if problem_type(model_config) == "regression":
        return []
    return [model_config.id2label[i] for i in range(model_config.num_labels)]


def place(mesh: Mesh, abstract: Any) -> Any:
    """The abstract parameters with their shardings."""

    def leaf(path: str, x: Any) -> jax.ShapeDtypeStruct:
        sharding = parameter_sharding(mesh, path, x.shape)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return map_params(leaf, abstract)


def check_head(config: Config, saved: Any) -> None:
    """Refuses a bare model before its missing labels are taken for the mistake."""
    bare = FAMILIES[saved.model_type].architecture("base")
    task = config.model.task
    if task in models.family_of(saved).heads and saved.architectures == [bare]:
        raise InputError(
            f"{config.model.path}: the model has no {task} head, it is a {bare}; expected a model "
            "that `jaxllm train` wrote, or another with such a head"
        )


def check_tokenizer(tokenizer: Any, model_config: Any) -> None:
    """Refuses ids outside of the word embedding, which XLA would answer with wrong numbers.

    Warns where the table has more rows than rounding up explains: another model's tokenizer?
    """
    size = vocabulary_size(tokenizer)
    if size > model_config.vocab_size:
        raise InputError(
            f"the tokenizer has {size} tokens, but the model {model_config.vocab_size} "
            "(vocab_size); give the tokenizer that belongs to it"
        )
    if size <= model_config.vocab_size - _ROUNDED_UP:
        logger.warning(
            "the model has %d tokens (vocab_size), the tokenizer %d; the others are never seen. If "
            "the weights are pretrained, check that this is the tokenizer that belongs to them",
            *(model_config.vocab_size, size),
        )


def check_fit(
    model_config: Any, tokenizer: Any, max_length: int, *, pair: bool, key: str = "data.max_length"
) -> None:
    """Refuses a tokenizer, and rows of `max_length` tokens, that the model has no place for.

    Whoever loads a model calls this, to train, to evaluate and to predict: XLA answers an id
    outside of its table with NaN or with another row.

    pair: whether a row may hold two texts. key: what `max_length` is called in a message.
    """
    check_tokenizer(tokenizer, model_config)
    longest = models.max_tokens(model_config)
    if max_length > longest:
        raise InputError(
            f"{key}: found {max_length}, expected at most the model's {longest} positions "
            "(max_position_embeddings)"
        )
    texts = ("a", "a") if pair else ("a",)
    types = max(tokenizer(*texts, return_token_type_ids=True)["token_type_ids"], default=0) + 1
    known = getattr(model_config, "type_vocab_size", 0)
    if types > known > 1:  # where there is one type the model takes all tokens to be of it
        raise InputError(
            f"the tokenizer tells {types} types of tokens apart, but the model {known} "
            "(type_vocab_size); give the tokenizer that belongs to it"
        )
