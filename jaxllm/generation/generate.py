"""`generate`: prompts and options to continuations."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.generation import beams, decode
from jaxllm.generation.decode import Kept, Rules, State
from jaxllm.generation.options import Options
from jaxllm.generation.processors import Processors
from jaxllm.generation.prompts import Prompts, lengths, places
from jaxllm.generation.stop_strings import StopStrings
from jaxllm.models import Graph, Params, family_of, max_tokens
from jaxllm.models.outputs import Output

CHUNK = 8  # tokens that are written before who watches sees them


@dataclass(frozen=True, eq=False)
class Writer:
    """A model that writes: its module, its parameters, its config."""

    graph: Graph
    params: Params
    config: Any

    @property
    def vocabulary(self) -> int:
        return self.config.vocab_size

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text; None: any, as rotary positions that stretch have it."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if "position_ids" not in family_of(self.config).ids and rope.get("rope_type") == "dynamic":
            return None
        return max_tokens(self.config)

    @cached_property
    def layers(self) -> tuple[Any, ...]:
        return decode.unstacked(self.graph, self.params)

    def stops(self, options: Options, tokenizer: Any) -> StopStrings | None:
        """What finds the options' stop strings."""
        if not options.stop_strings:
            return None
        if tokenizer is None:
            raise InputError(
                f"stop_strings: found {options.stop_strings!r:.80} without a tokenizer, which "
                "tells what tokens spell; give tokenizer="
            )
        return StopStrings.of(options.stop_strings, tokenizer, self.vocabulary)


@dataclass(frozen=True, eq=False)
class GenerateOutput(Output):
    """What `generate` gives with return_dict_in_generate; R rows, N new tokens.

    Attributes:
        sequences: int32 [R, P + N], prompts and continuations.
        scores: with output_scores, of each new token float32 [R, V], after all processors.
        logits: with output_logits, the same of the model.
        log_probabilities: float32 [R, N] of the new tokens, by `scores`; 0 behind the end of a row.
        sequences_scores: of beam search, float32 [R].
        beam_indices: of beam search, int32 [R, N], as in transformers.
    """

    sequences: np.ndarray
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    log_probabilities: np.ndarray | None = None
    sequences_scores: np.ndarray | None = None
    beam_indices: np.ndarray | None = None


class Decoding:
    """Continuations that are being written, some tokens at a time."""

    def __init__(
        self,
        writer: Writer,
        prompts: Prompts,
        options: Options,
        stops: StopStrings | None = None,
        numbers_B: np.ndarray | None = None,
    ) -> None:
        """`numbers_B`: of the prompts, which draws depend on; by default their places."""
        self._writer = writer
        _, self._total = lengths(options, prompts, writer.positions)
        copies = options.num_return_sequences
        row_RX = _numbers(prompts, numbers_B)[:, None] * copies + np.arange(copies)[None]
        rows = row_RX.reshape(-1).astype(np.int32)
        keys_R = decode.row_keys(options.seed, copies, rows) if options.do_sample else None
        prompts = prompts.repeated(copies)
        P = prompts.length
        self._rules = rules_of(writer, prompts, options, options.fill_id, stops, keys_R)
        read, new = prompts.padded(places(P)), places(self._total - P)
        ids_RS = np.zeros((len(rows), places(P) + new), np.int32)
        ids_RS[:, :P] = prompts.ids_BP
        kept = Kept(options.output_scores, options.output_logits, options.return_dict_in_generate)
        self._prompt_length = P
        self._state: State = decode.start(
            writer.graph,
            new,
            kept,
            writer.params,
            writer.layers,
            self._rules,
            ids_RS,
            np.int32(P),
            read.ids_BP,
            read.mask_BP,
        )

    @property
    def length(self) -> int:
        """Of prompts and continuations so far."""
        return int(self._state.length)

    @property
    def has_ended(self) -> bool:
        return self.length >= self._total or bool(self._state.ended_R.all())

    def advance(self, tokens: int | None = None) -> None:
        """Writes so many tokens more, or all."""
        if self._total == self._prompt_length + 1:
            return  # the first token came with the prompt
        until = self._total if tokens is None else min(self._total, self.length + tokens)
        writer = self._writer
        self._state = decode.advance(
            writer.graph, writer.params, writer.layers, self._rules, self._state, np.int32(until)
        )

    def chunks(self, tokens: int | None) -> Iterator[np.ndarray]:
        """Writes to the end; int32 [R, n], the new tokens, each time that there are some."""
        seen = self._prompt_length
        while True:
            ids_RS, length = jax.device_get((self._state.ids_RS, self._state.length))
            yield ids_RS[:, seen:length]
            seen = int(length)
            if self.has_ended:
                return
            self.advance(tokens)

    @property
    def faults(self) -> np.ndarray:
        """int32 [R], see `State`."""
        return np.asarray(self._state.fault_R)

    def output(self) -> GenerateOutput:
        state: State = jax.device_get(replace(self._state, cache=None))
        length = int(state.length)
        new = length - self._prompt_length

        def steps(kept: Any) -> tuple[np.ndarray, ...] | None:
            return None if kept is None else tuple(kept[:new])

        log_NR = state.log_probabilities_NR
        return GenerateOutput(
            np.asarray(state.ids_RS[:, :length]),
            steps(state.scores_NRV),
            steps(state.logits_NRV),
            None if log_NR is None else np.asarray(log_NR[:new].T),
        )


def rules_of(
    writer: Writer,
    prompts: Prompts,
    options: Options,
    fill_id: int | None,
    stops: StopStrings | None,
    keys: jax.Array | None,
) -> Rules:
    """How the rows that go on from `prompts` are written."""
    least, total = lengths(options, prompts, writer.positions)
    processors = Processors.of(
        options,
        vocabulary=writer.vocabulary,
        ignored_R=prompts.ignored,
        prompt_length=prompts.length,
        min_length=least,
        max_length=total,
    )
    ends_V = jnp.asarray(np.isin(np.arange(writer.vocabulary), options.eos_token_id))
    return Rules(processors, ends_V, jnp.int32(-1 if fill_id is None else fill_id), stops, keys)


def _numbers(prompts: Prompts, given_B: np.ndarray | None) -> np.ndarray:
    return np.arange(len(prompts.ids_BP), dtype=np.int32) if given_B is None else given_B


def _by_beams(
    writer: Writer,
    prompts: Prompts,
    options: Options,
    stops: StopStrings | None,
    numbers_B: np.ndarray | None,
) -> tuple[GenerateOutput, np.ndarray]:
    _, total = lengths(options, prompts, writer.positions)
    (B, P), K, n = prompts.ids_BP.shape, options.num_beams, options.num_return_sequences
    fill = beams.fill_id(options)
    keys_B = decode.row_keys(options.seed, 1, _numbers(prompts, numbers_B))
    read, new = prompts.padded(places(P)), places(total - P)
    ids_BS = np.full((B, places(P) + new), fill, np.int32)
    ids_BS[:, :P] = prompts.ids_BP
    found = beams.search(
        writer.graph,
        new,
        K,
        beams.candidates(options, writer.vocabulary),
        Kept(options.output_scores, options.output_logits),
        writer.params,
        writer.layers,
        rules_of(
            writer, prompts.repeated(K), options, fill, stops, keys_B if options.do_sample else None
        ),
        beams.BeamRules.of(options, total - P, new),
        ids_BS,
        np.int32(P),
        np.int32(total),
        read.ids_BP,
        read.mask_BP,
    )
    found = jax.device_get(replace(found, cache=None))
    best, steps = found.ended, int(found.length) - P
    rows = best.rows_BKN[:, :n].reshape(B * n, new)
    longest = int((rows >= 0).sum(1).max())

    def kept(kept_NRV: Any) -> tuple[np.ndarray, ...] | None:
        return None if kept_NRV is None else tuple(kept_NRV[:steps])

    out = GenerateOutput(
        best.ids_BKS[:, :n].reshape(B * n, -1)[:, : P + longest],
        kept(found.scores_NRV),
        kept(found.logits_NRV),
        sequences_scores=best.scores_BK[:, :n].reshape(-1),
        beam_indices=rows[:, :longest],
    )
    return out, found.fault_B.repeat(n)


def generate(
    writer: Writer,
    prompts: Prompts,
    options: Options,
    *,
    tokenizer: Any = None,
    streamer: Any = None,
) -> GenerateOutput:
    """The continuations of prompts.

    tokenizer: of the model, for stop strings.
    streamer: its `put` gets the prompts [B, P], then the tokens of each step [R], some steps at a
    time, its `end` is called behind the last: transformers' streamers are such.

    Raises:
        InputError: options that do not fit the prompts or the model, logits that are NaN.
    """
    stops = writer.stops(options, tokenizer)
    out, faults_R = written(writer, prompts, options, stops, streamer=streamer)
    check(faults_R)
    return out


def written(
    writer: Writer,
    prompts: Prompts,
    options: Options,
    stops: StopStrings | None = None,
    *,
    numbers_B: np.ndarray | None = None,
    streamer: Any = None,
) -> tuple[GenerateOutput, np.ndarray]:
    """(the continuations of prompts, of each row int32 [R] what went wrong, see `decode.State`).

    numbers_B: of the prompts, which draws depend on; by default their places.
    """
    if options.num_beams > 1:
        if streamer is not None:
            raise InputError(
                f"streamer: found one beside num_beams={options.num_beams}, whose tokens are known "
                "at the end only; leave it out, or give num_beams=1"
            )
        return _by_beams(writer, prompts, options, stops, numbers_B)
    decoding = Decoding(writer, prompts, options, stops, numbers_B)
    if streamer is None:
        decoding.advance()
    else:
        streamer.put(prompts.ids_BP)
        for ids_RN in decoding.chunks(CHUNK):
            for token_R in ids_RN.T:
                streamer.put(token_R)
        streamer.end()
    return decoding.output(), decoding.faults


def check(faults_R: np.ndarray) -> None:
    """Raises the InputError of the first row in which something went wrong."""
    for row in np.flatnonzero(faults_R):
        raise InputError(f"row {row}: {fault(int(faults_R[row]))}")


def fault(code: int) -> str:
    """What a code of `State.fault_R` says."""
    if code == decode.NOT_A_NUMBER:
        return (
            "the model's logits are NaN, so there is no next token; check that its weights and its "
            "config.json are whole, or compute in float32"
        )
    return (
        "the options forbid every token of the vocabulary, so there is no next token; take back "
        "some of suppress_tokens, bad_words_ids, no_repeat_ngram_size, min_length"
    )
