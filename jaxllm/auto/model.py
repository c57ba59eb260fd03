"""What the public classes share: a config, a tree of parameters, and one pure, jitted call."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, Unpack

import jax

from jaxllm.adapters import peft_format
from jaxllm.auto import loss
from jaxllm.auto.resize import resized
from jaxllm.errors import InputError
from jaxllm.models import Compute, Graph, Params, family_of, init_params, max_tokens, module_parts
from jaxllm.models.arguments import check_keywords, compute_of
from jaxllm.models.arrays import LABELS, Arrays, MoreArrays, check_inputs, check_labels
from jaxllm.models.model import Model
from jaxllm.models.outputs import Output
from jaxllm.nn.sharding import check_not_explicit
from jaxllm.pretrained import configs, hf
from jaxllm.runtime import memory
from jaxllm.trees import leaf_at

Out = TypeVar("Out", bound=Output)
_CALL = (
    *Arrays.__annotations__,
    *("output_hidden_states", "output_attentions", "params", "key"),
)
_KEYWORDS = ("dtype", "attention", "remat", "unroll", "seed")


class PretrainedModel(Generic[Out]):
    """What the classes below share.

    Attributes:
        config: the transformers config.
        params: nested dict of float32 arrays, which may be replaced.
        compute: how the model is computed: dtype, attention, remat, unroll.
    """

    task: ClassVar[str]

    def __init__(
        self,
        config: Any,
        params: Params,
        compute: Compute | None = None,
        *,
        graph: Graph | None = None,
        source: Path | None = None,
    ):
        self.config = config
        self.params = params
        self.compute = Compute() if compute is None else compute
        self._graph = graph or module_parts(config, self.task, self.compute)[0]
        self._source = source

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: Any = "float32",
        attention: Any = "xla",
        remat: str = "none",
        unroll: int = 1,
        seed: int = 0,
        adapter: str | Path | None = None,
        **config_overrides: Any,
    ) -> Self:
        """The model at `path`: a directory, a Hub id, or package:NAME/sub/dir.

        `dtype`: of the computation, float32, bfloat16 or float16 by name or as a type
        (jnp.bfloat16); parameters are float32. `attention`: xla, blocked, cudnn, triton or splash,
        or a function as `attention.backends.Given` calls it: programs are compiled for each
        function. `remat`: what the backward pass computes again: none, full (all but the input of
        each block), dots (all but the matrix products). `unroll`: blocks in one iteration of the
        scan, 0 = all. `seed`: for the parameters of a head that the checkpoint lacks. `adapter`:
        directory or Hub id of a LoRA of this model, as `peft` writes it, which is merged into the
        parameters. `config_overrides`: config attributes, such as num_labels=3. Raises InputError
        for a path, keyword, config or tensor that cannot be used.
        """
        check_keywords(config_overrides, (*_KEYWORDS, "adapter"))
        compute = compute_of(dtype, attention, remat, unroll)
        directory = hf.resolve(path)
        config = hf.load_config(directory, **config_overrides)
        graph, abstract = module_parts(config, cls.task, compute)
        init = partial(init_one, config, cls.task, seed)
        if adapter is None:
            params, _ = hf.load_params(directory, config, abstract, init=init)
        else:
            own = peft_format.read(adapter, config, abstract, cls.task)
            base, _ = hf.load_params(directory, config, abstract, init=init, given=own.whole)
            params = own.merged(base)
        return cls(config, params, compute, graph=graph, source=directory)

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        seed: int = 0,
        dtype: Any = "float32",
        attention: Any = "xla",
        remat: str = "none",
        unroll: int = 1,
        **unknown: Any,
    ) -> Self:
        """A model with random parameters drawn from `seed`.

        `config`: a config of transformers, the dict that its config.json holds, or a path as in
        `from_pretrained`, of which no weights are read. The other arguments are those of
        `from_pretrained`. Raises InputError for a config that is not implemented, and for any other
        keyword: set attributes on the config.
        """
        check_keywords(unknown, _KEYWORDS, attributes=False)
        compute = compute_of(dtype, attention, remat, unroll)
        if isinstance(config, str | Path):
            config = hf.load_config(config)
        elif isinstance(config, Mapping):
            config = configs.make_config(dict(config), "the config")
        else:
            configs.check_config(config, type(config).__name__)
        graph, abstract = module_parts(config, cls.task, compute)
        memory.check(memory.bytes_of(abstract), "the parameters", "give the config smaller sizes")
        return cls(config, init_params(config, cls.task, seed), compute, graph=graph)

    def __repr__(self) -> str:
        attention = self.compute.attention
        name = (
            attention if isinstance(attention, str) else getattr(attention, "__name__", attention)
        )
        return (
            f"{type(self).__name__}(model_type={self.config.model_type}, "
            f"parameters={self.num_parameters():,}, dtype={self.compute.dtype}, attention={name})"
        )

    def num_parameters(self) -> int:
        """Numbers in `params`; a table that embeds and decodes counts once."""
        return sum(x.size for x in jax.tree.leaves(self.params))

    @property
    def module(self) -> Model:
        """The flax.nnx module with `params` in it, for programs of their own."""
        return self._graph.merge(self.params)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        params: Params | None = None,
        key: jax.Array | None = None,
        **arrays: Unpack[MoreArrays],
    ) -> Out:
        """The model's output, named as in transformers; jitted, and pure in its arguments.

        The arrays are told in `models.arrays.Arrays`; with labels the output has a `loss`.
        `params`: in place of `self.params`. `key`: a jax.random.key turns dropout on. The outputs
        asked for are by default those that the config asks for.

        Raises:
            InputError: an array of another name, shape or type, an id without a row in its table, a
                position outside of its row. Values of arrays on a device are not looked at.
        """
        tokens = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        params = self.params if params is None else params
        asked = (output_hidden_states, output_attentions)
        return _run(*self._computation(params, tokens | arrays, *asked), key)

    def apply(
        self,
        params: Params,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        key: jax.Array | None = None,
        **arrays: Unpack[Arrays],
    ) -> Out:
        """The call without `jax.jit`, for programs that are compiled as a whole.

        The arrays are told in `models.arrays.Arrays`.
        """
        asked = (output_hidden_states, output_attentions)
        program, params, inputs, labels = self._computation(params, {**arrays}, *asked)
        return program(params, inputs, labels, key)

    def _computation(
        self,
        params: Params,
        arrays: dict[str, Any],
        hidden_states: bool | None,
        attentions: bool | None,
    ) -> "tuple[_Program, Params, Params, Params]":
        """(program, params, the model's inputs, labels), checked."""
        check_keywords(arrays, _CALL, attributes=False)
        config, sizes = self.config, self._sizes()
        given = {name: x for name, x in arrays.items() if x is not None}
        labels = {name: given.pop(name) for name in LABELS if name in given}
        inputs = check_inputs(
            given,
            sizes,
            width=leaf_at(params, "embeddings/word/embedding").shape[-1],
            heads=config.num_attention_heads,
            longest=max_tokens(config) if "position_ids" in sizes else None,
            choices=self.task == "multiple-choice",
        )
        labels = check_labels(labels, loss.classes_of(self.task, config))
        check_not_explicit((params, inputs, labels))
        program = _Program(
            self._graph,
            bool(config.output_hidden_states if hidden_states is None else hidden_states),
            bool(config.output_attentions if attentions is None else attentions),
            loss.loss_of(self.task, config, labels) if labels else None,
        )
        return program, params, inputs, labels

    def _sizes(self) -> dict[str, int]:
        """Rows of the tables that ids are looked up in, where the model has them."""
        return {name: getattr(self.config, key) for name, key in family_of(self.config).ids.items()}

    def resize_token_embeddings(self, size: int, *, seed: int = 0) -> None:
        """Gives the vocabulary `size` tokens: the config, the word table, and the decoder that is
        tied to it with its bias.

        Rows of new tokens are drawn from `seed` close to the mean of the old rows, as transformers
        does. Raises InputError for a size that is none.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"size: found {size!r:.80}, expected how many tokens the vocabulary has: "
                "len(tokenizer)"
            )
        config = copy.deepcopy(self.config)
        config.vocab_size = size
        graph, abstract = module_parts(config, self.task, self.compute)
        memory.check(memory.bytes_of(abstract), "the parameters", "give a smaller size")
        self.params = resized(self.params, abstract, jax.random.key(seed))
        self.config, self._graph = config, graph

    def save_pretrained(
        self, directory: str | Path, weights: str = "safetensors", *, tokenizer: Any = None
    ) -> None:
        """Writes what transformers loads: see `pretrained.hf.save_pretrained`.

        `tokenizer`: by default the files beside the weights that this model was loaded from.
        """
        tokenizer = self._source if tokenizer is None else tokenizer
        hf.save_pretrained(
            directory, self.params, self.config, self.task, weights=weights, tokenizer=tokenizer
        )


@dataclass(frozen=True)
class _Program:
    """What a call compiles for."""

    graph: Graph
    hidden_states: bool
    attentions: bool
    loss: loss.Loss | None

    def __call__(
        self, params: Params, inputs: Params, labels: Params, key: jax.Array | None
    ) -> Any:
        out = self.graph.merge(params)(
            output_hidden_states=self.hidden_states,
            output_attentions=self.attentions,
            key=key,
            **inputs,
        )
        return out if self.loss is None else replace(out, loss=self.loss(out, labels, inputs))


@partial(jax.jit, static_argnums=0)
def _run(
    program: _Program, params: Params, inputs: Params, labels: Params, key: jax.Array | None
) -> Any:
    return program(params, inputs, labels, key)


def init_one(config: Any, task: str, seed: int, path: str) -> jax.Array:
    """One random parameter of the model. Under jit nothing else is computed or held."""

    return jax.jit(lambda: leaf_at(init_params(config, task, seed), path))()
