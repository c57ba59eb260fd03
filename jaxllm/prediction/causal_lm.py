"""Answers texts with what a causal language model writes behind them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxllm.errors import InputError
from jaxllm.generation.generate import GenerateOutput, Writer, fault, written
from jaxllm.generation.options import Options, options_of
from jaxllm.generation.prompts import Prompts, lengths
from jaxllm.generation.stop_strings import StopStrings
from jaxllm.prediction.batched import BatchSizes, EncodedLine, Predictor, Row
from jaxllm.prediction.inputs import RowError, column, columns
from jaxllm.prediction.saved import SavedModel
from jaxllm.pretrained.generation_defaults import generation_defaults


@dataclass(frozen=True)
class Continuer(Predictor):
    """`text`: what the model writes behind a text; `texts` where several are asked for.

    Draws of a line depend on the seed and the line's number, whatever is in the batch beside it.
    """

    saved: SavedModel
    writer: Writer
    options: Options
    stops: StopStrings | None

    @classmethod
    def of(
        cls, model: SavedModel, batch_sizes: BatchSizes, given: Mapping[str, Any] | None = None
    ) -> "Continuer":
        """With the options of `given` over those of the model's files."""
        writer = Writer(model.graph, model.params, model.config)
        defaults, where = generation_defaults(model.directory, model.config)
        options = options_of(given or {}, defaults, where, writer.vocabulary)
        stops = writer.stops(options, model.tokenizer)
        return cls(model.form, batch_sizes, _unused, model, writer, options, stops)

    def parse(self, row: Any) -> str:
        return column(columns(row, self.form), self.form.text)

    def encode(self, asked: list[str]) -> list[EncodedLine | RowError]:
        """Tokens with the special ones that stand before a text, without those behind it."""
        result: list[EncodedLine | RowError] = []
        encoded = self.saved.tokenizer(asked, return_special_tokens_mask=True)
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            while ids and special[len(ids) - 1]:
                ids = ids[:-1]
            try:
                lengths(self.options, self.prompts([ids]), self.writer.positions)
            except InputError as error:
                result.append(RowError(str(error).replace("row 0 has", "the text has")))
                continue
            tokens = np.array(ids, np.int32)
            result.append(EncodedLine([Row(tokens, np.zeros_like(tokens))], False, ids))
        return result

    def answer(self, asked: list[int], outputs: list[Any]) -> dict[str, Any]:
        """Of the new tokens [N] of each continuation."""
        texts = [self.spelled(asked, new_N) for new_N in outputs]
        return {"text": texts[0]} if len(texts) == 1 else {"texts": texts}

    def answers(self, lines: Sequence[Any], first_line: int) -> list[dict[str, Any]]:
        results: list[dict[str, Any] | RowError] = []
        prompts: dict[int, list[int]] = {}
        for i, line in enumerate(lines):
            try:
                (one,) = self.encode([self.parse(_readable(line))])
                if isinstance(one, RowError):
                    raise one
                prompts[i] = one.asked
                results.append({})
            except RowError as error:
                results.append(error)
        copies = self.options.num_return_sequences
        for batch in self._batches(prompts):
            numbers_B = np.array(batch) + first_line - 1
            asked = self.prompts([prompts[i] for i in batch])
            out, faults_R = self.write(asked, numbers_B=numbers_B)
            new_RN = out.sequences[:, asked.length :]
            for k, i in enumerate(batch):
                own = slice(k * copies, (k + 1) * copies)
                wrong = faults_R[own].max()
                results[i] = (
                    RowError(fault(int(wrong)))
                    if wrong
                    else self.answer(prompts[i], list(new_RN[own]))
                )
        return [
            {"error": str(result), "line": first_line + i}
            if isinstance(result, RowError)
            else result
            for i, result in enumerate(results)
        ]

    def write(self, prompts: Prompts, **more: Any) -> tuple[GenerateOutput, np.ndarray]:
        """See `generation.generate.written`."""
        with jax.set_mesh(self.saved.mesh):
            return written(self.writer, prompts, self.options, self.stops, **more)

    def spelled(self, prompt: list[int], new_N: np.ndarray) -> str:
        """The text that new tokens add to a prompt, up to the first that ends one."""
        new = list(map(int, new_N))
        ends = [i for i, token in enumerate(new) if token in self.options.eos_token_id]
        new = new[: ends[0]] if ends else new
        before = self._text(prompt)
        whole = self._text(prompt + new)  # of new tokens alone a space may be lost
        text = whole[len(before) :] if whole.startswith(before) else self._text(new)
        found = [(text.find(stop), stop) for stop in self.options.stop_strings]
        # Where no token ends a row, tokens stand behind the string, too.
        ends = [start + len(stop) for start, stop in found if start >= 0]
        return text[: min(ends)] if ends else text

    def _text(self, ids: list[int]) -> str:
        return self.saved.tokenizer.backend_tokenizer.decode(ids)

    def prompts(self, rows: list[list[int]]) -> Prompts:
        return Prompts.of(rows, None, self.options, self.writer.vocabulary)

    def _batches(self, prompts: Mapping[int, list[int]]) -> Iterator[list[int]]:
        """Lines of about one length; of exactly one where a total length is asked for, to which
        padding would add.
        """
        options, most = self.options, self.batch_sizes[1]
        whole = options.max_new_tokens is None or options.min_length > 0
        batch: list[int] = []
        for i in sorted(prompts, key=lambda i: len(prompts[i])):
            other = batch and whole and len(prompts[batch[0]]) != len(prompts[i])
            if len(batch) == most or other:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch


def _readable(line: Any) -> Any:
    if isinstance(line, RowError):
        raise line
    return line


def _unused(rows: dict[str, np.ndarray]) -> Any:
    raise NotImplementedError("a continuation is more than one call of the model")
