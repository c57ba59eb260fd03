"""The public class of models that write."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.auto.model import PretrainedModel
from jaxllm.data.fit import check_tokenizer
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError
from jaxllm.generation import generate
from jaxllm.generation.generate import GenerateOutput, Writer
from jaxllm.generation.options import options_of
from jaxllm.generation.prompts import Prompts
from jaxllm.models import Graph, apply_fn, max_tokens
from jaxllm.models.outputs import HeadOutput
from jaxllm.prediction import likelihood
from jaxllm.prediction.likelihood import Judge, Rows
from jaxllm.pretrained import hf
from jaxllm.pretrained.generation_defaults import generation_defaults, settings_to_keep


class AutoModelForCausalLM(PretrainedModel[HeadOutput]):
    """out.logits [B, T, V], or [B, P, V] at `head_positions`: of each token, what comes next."""

    task = "causal-lm"
    _written: Writer | None = None

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._defaults = None
        if self._source is not None:  # read now: the directory may go
            self._defaults = generation_defaults(self._source, self.config)

    @property
    def defaults(self) -> tuple[dict[str, Any], str]:
        """What `generate` takes where it is not given, see `generation_defaults`."""
        return self._defaults or generation_defaults(None, self.config)

    @property
    def writer(self) -> Writer:
        """What `generate` writes with. It holds a second copy of the blocks' parameters, layer by
        layer, made once for `params`.
        """
        if self._written is None or self._written.params is not self.params:
            self._written = Writer(self._graph, self.params, self.config)
        return self._written

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        tokenizer: Any = None,
        streamer: Any = None,
        **options: Any,
    ) -> np.ndarray | GenerateOutput:
        """int32 [R, length]: prompts and their continuations, as transformers' `generate`.

        Args:
            input_ids: [B, P], padded on the left, or a list of lists of different lengths.
            attention_mask: [B, P], 0 for padding. By default tokens that are the pad id are
                padding, unless that ends a text, too.
            tokenizer: of the model, for stop_strings.
            streamer: its `put` gets the prompts, then the tokens of each step.
            options: max_new_tokens=64, do_sample=True, num_beams=4, …, see
                `generation.options.Options`. What is not given is as generation_config.json says,
                or, without that file, config.json.

        Returns:
            R = B x num_return_sequences rows; behind the end of a row stands the pad id. With
            return_dict_in_generate=True a `GenerateOutput`.

        Raises:
            InputError: prompts or options that cannot be met, logits that are NaN.
        """
        writer = self.writer
        defaults, where = self.defaults
        asked = options_of(options, defaults, where, writer.vocabulary)
        prompts = Prompts.of(input_ids, attention_mask, asked, writer.vocabulary)
        out = generate.generate(writer, prompts, asked, tokenizer=tokenizer, streamer=streamer)
        return out if asked.return_dict_in_generate else out.sequences

    def judge(
        self, *, tokenizer: Any = None, max_length: int | None = None, batch_size: int = 8
    ) -> Judge:
        """What tells how likely text is: `model.judge().loglikelihood([(context, continuation)])`,
        `model.judge(max_length=512).loglikelihood_rolling(texts)`, hence the perplexity.

        Args:
            tokenizer: of the model, by default the one beside the weights.
            max_length: tokens that are read at a time; None = as many as the model has positions.
            batch_size: rows of a batch.

        Raises:
            InputError: no tokenizer, a number out of its range.
        """
        if tokenizer is None:
            if self._source is None:
                raise InputError("tokenizer: found none, expected that of the model")
            tokenizer = load_tokenizer(self._source)
        check_tokenizer(tokenizer, self.config)
        longest = max_tokens(self.config)
        max_length = longest if max_length is None else max_length
        if not 1 <= max_length <= longest:
            raise InputError(
                f"max_length: found {max_length}, expected 1 to the model's {longest} positions"
            )
        if batch_size < 1:
            raise InputError(f"batch_size: found {batch_size}, expected at least 1")
        forward = partial(_forward(self._graph, self.config.vocab_size), self.params)
        return Judge(forward, Rows(tokenizer, max_length), batch_size)

    def save_pretrained(
        self, directory: str | Path, weights: str = "safetensors", *, tokenizer: Any = None
    ) -> None:
        """As `PretrainedModel.save_pretrained`, and generation_config.json with what `generate`
        takes where it is not given.
        """
        hf.save_pretrained(
            directory,
            self.params,
            self.config,
            self.task,
            weights=weights,
            tokenizer=self._source if tokenizer is None else tokenizer,
            generation=settings_to_keep(*self.defaults),
        )


@cache
def _forward(graph: Graph, vocabulary: int) -> Any:
    """Compiled once for all calls of a model."""
    return likelihood.forward_of(apply_fn(graph), vocabulary)
