"""The public model classes: a config, a tree of parameters, and one pure, jitted call."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import jax

from jaxllm.models import (
    Compute,
    Params,
    apply_fn,
    family_of,
    init_params,
    max_tokens,
    module_parts,
)
from jaxllm.models.arguments import check_inputs, check_keywords, dtype_name
from jaxllm.pretrained import configs, hf
from jaxllm.runtime import memory
from jaxllm.trees import leaf_at


class PretrainedModel:
    """What the classes below share.

    `config`: the transformers config; `params`: nested dict of float32 arrays, which may be
    replaced. Nothing else is state.
    """

    task: ClassVar[str]

    def __init__(self, config: Any, params: Params, graphdef: Any, source: Path | None = None):
        self.config = config
        self.params = params
        self._graphdef = graphdef
        self._source = source

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: Any = "float32",
        attention: str = "xla",
        seed: int = 0,
        **config_overrides: Any,
    ) -> Self:
        """The model at `path`: a directory, a Hub id, or package:NAME/sub/dir.

        `dtype`: of the computation, float32 or bfloat16 by name or as a type (jnp.bfloat16);
        parameters are float32. `attention`: xla, blocked, cudnn, triton or splash. `seed`: for the
        parameters of a head that the checkpoint lacks. `config_overrides`: config attributes, such
        as num_labels=3. Raises InputError for a path, keyword, config or tensor that cannot be
        used.
        """
        check_keywords(config_overrides, ("dtype", "attention", "seed"))
        dtype = dtype_name(dtype)
        directory = hf.resolve(path)
        config = hf.load_config(directory, **config_overrides)
        graphdef, abstract = module_parts(config, cls.task, Compute(dtype, attention))
        init = partial(init_one, config, cls.task, seed)
        params, _ = hf.load_params(directory, config, abstract, init=init)
        return cls(config, params, graphdef, directory)

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        seed: int = 0,
        dtype: Any = "float32",
        attention: str = "xla",
        **unknown: Any,
    ) -> Self:
        """A model with random parameters drawn from `seed`.

        Raises InputError for a config that is not implemented, and for any other keyword: set
        attributes on the config.
        """
        check_keywords(unknown, ("dtype", "attention", "seed"), attributes=False)
        dtype = dtype_name(dtype)
        configs.check_config(config, type(config).__name__)
        graphdef, abstract = module_parts(config, cls.task, Compute(dtype, attention))
        memory.check(memory.bytes_of(abstract), "the parameters", "give the config smaller sizes")
        return cls(config, init_params(config, cls.task, seed), graphdef)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        segment_ids: Any = None,
        head_positions: Any = None,
        pooled_positions: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        params: Params | None = None,
        key: jax.Array | None = None,
    ) -> Any:
        """The model's output, named as in transformers; jitted, and pure in its arguments.

        All ids and masks are integers [B, T]; for multiple choice also [B, C, T]. `segment_ids`:
        packed rows, 1, 2, … for the examples, one after the other, 0 for padding; positions restart
        in each. `head_positions` [B, P]: the tokens that a head looks at, `pooled_positions` [B, Q]
        those of a second head. `params`: in place of `self.params`. `key`: a jax.random.key turns
        dropout on. The outputs asked for are by default those that the config asks for.

        Raises:
            InputError: an array of another shape or type, an id without a row in its table, a
                position outside of its row. Values of arrays on a device are not looked at.
        """
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        ids = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "segment_ids": segment_ids,
            "head_positions": head_positions,
            "pooled_positions": pooled_positions,
        }
        given = {name: x for name, x in ids.items() if x is not None}
        choices = self.task == "multiple-choice"
        sizes = self._sizes()
        longest = max_tokens(self.config) if "position_ids" in sizes else None
        inputs = check_inputs(given, sizes, longest=longest, choices=choices)
        if key is not None:
            inputs["key"] = key
        params = self.params if params is None else params
        return _run(self._graphdef, output_hidden_states, output_attentions, params, inputs)

    def _sizes(self) -> dict[str, int]:
        """Rows of the tables that ids are looked up in, where the model has them."""
        return {name: getattr(self.config, key) for name, key in family_of(self.config).ids.items()}

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


class AutoModel(PretrainedModel):
    """Without a head: out.last_hidden_state [B, T, D]; out.pooler_output [B, D], or [B, P, D] at
    `head_positions`, where the family has a pooler.
    """

    task = "base"


class AutoModelForPreTraining(PretrainedModel):
    """BERT: out.prediction_logits [B, T, V], or [B, P, V] at `head_positions`, and
    out.seq_relationship_logits [B, 2], or [B, Q, 2] at `pooled_positions`.

    ELECTRA's discriminator: out.logits [B, T], positive for a token that was replaced.
    """

    task = "pretraining"


class AutoModelForMaskedLM(PretrainedModel):
    """out.logits [B, T, V], or [B, P, V] at `head_positions`."""

    task = "masked-lm"


class AutoModelForNextSentencePrediction(PretrainedModel):
    """out.logits [B, 2], or [B, P, 2] for the segments that begin at `head_positions`."""

    task = "next-sentence"


class AutoModelForSequenceClassification(PretrainedModel):
    """out.logits [B, C], or [B, P, C] for the segments that begin at `head_positions`."""

    task = "sequence-classification"


class AutoModelForTokenClassification(PretrainedModel):
    """out.logits [B, T, C]."""

    task = "token-classification"


class AutoModelForQuestionAnswering(PretrainedModel):
    """out.start_logits and out.end_logits [B, T]. The config's num_labels is 2."""

    task = "question-answering"


class AutoModelForMultipleChoice(PretrainedModel):
    """Takes ids and masks [B, C, T]: out.logits [B, C]. Or packed choices [B, T]: out.logits [B, P]
    for the segments that begin at `head_positions`.
    """

    task = "multiple-choice"


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    graphdef: Any, hidden_states: bool, attentions: bool, params: Params, inputs: Params
) -> Any:
    apply: Callable[..., Any] = apply_fn(graphdef)
    return apply(params, output_hidden_states=hidden_states, output_attentions=attentions, **inputs)


def init_one(config: Any, task: str, seed: int, path: str) -> jax.Array:
    """One random parameter of the model. Under jit nothing else is computed or held."""

    return jax.jit(lambda: leaf_at(init_params(config, task, seed), path))()
