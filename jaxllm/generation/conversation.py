"""A conversation whose cache is kept from turn to turn: only new tokens are read."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.generation import decode
from jaxllm.generation.decode import Rules, State
from jaxllm.generation.generate import CHUNK, Writer, check, rules_of
from jaxllm.generation.options import Options
from jaxllm.generation.prompts import Prompts, lengths, places
from jaxllm.generation.stop_strings import StopStrings
from jaxllm.models import Graph, Params


class Conversation:
    """One text that a model and somebody else go on with in turns.

    read: tokens that the model has read so far, what it wrote apart; for whoever counts.
    """

    def __init__(self, writer: Writer, options: Options, stops: StopStrings | None = None) -> None:
        if writer.positions is None or options.num_beams > 1 or options.num_return_sequences > 1:
            raise InputError(
                "num_beams, num_return_sequences: a conversation goes on in one way, with a model "
                "of a bounded length; expected 1 and 1"
            )
        self._writer, self._options, self._stops = writer, options, stops
        self._places = places(writer.positions)
        self._cache: Any = None
        self._cached: list[int] = []  # the tokens in the cache
        self.read = 0

    def reply(self, ids: Sequence[int], turn: int = 0) -> Iterator[list[int]]:
        """New tokens behind `ids`, all tokens of the conversation so far, some at a time.

        Of `ids` those are read that differ from what the cache holds, and what is behind them.
        Draws depend on the seed and `turn`.

        Raises:
            InputError: the conversation is longer than the model's positions.
        """
        writer, options, S = self._writer, self._options, self._places
        P = len(ids)
        prompts = Prompts.of([list(ids)], [[1] * P], options, writer.vocabulary)
        _, total = lengths(options, prompts, writer.positions)
        keys_R = decode.row_keys(options.seed, 1, np.array([turn], np.int32))
        rules = rules_of(
            writer,
            prompts,
            options,
            options.fill_id,
            self._stops,
            keys_R if options.do_sample else None,
        )
        # The last token is read in any case: its logits are not kept.
        known = _common(self._cached, ids[: P - 1])
        new = np.array(ids[known:], np.int32)
        self.read += len(new)
        width = places(len(new))
        width = width if known + width <= S else len(new)
        ids_1S, new_1T = np.zeros((1, S + 1), np.int32), np.zeros((1, width), np.int32)
        ids_1S[0, :P], new_1T[0, : len(new)] = ids, new
        if self._cache is None:
            self._cache = _empty(writer.graph, S, writer.params)
        state = _resume(
            writer.graph,
            writer.params,
            writer.layers,
            rules,
            self._cache,
            ids_1S,
            np.int32(known),
            np.int32(P),
            new_1T,
        )
        self._cache, seen = None, P  # the loop takes it
        while True:
            length = int(state.length)
            written = np.asarray(state.ids_RS)[0, :length].tolist()
            check(np.asarray(state.fault_R))
            yield written[seen:]
            seen = length
            if length >= total or bool(state.ended_R[0]):
                break
            until = np.int32(min(total, length + CHUNK))
            state = decode.advance(writer.graph, writer.params, writer.layers, rules, state, until)
        self._cache, self._cached = state.cache, written[:-1]


def _common(cached: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(cached, ids, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(cached), len(ids)))


@partial(jax.jit, static_argnums=(0, 1))
def _empty(graph: Graph, places: int, params: Params) -> Any:
    return replace(graph.merge(params).stack.empty_cache(1, places), layers=())


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _resume(
    graph: Graph,
    params: Params,
    layers: tuple[Any, ...],
    rules: Rules,
    cache: Any,
    ids_1S: jax.Array,
    known: jax.Array,
    length: jax.Array,
    new_1T: jax.Array,
) -> State:
    """The row with its next token, where the cache holds the first `known` of `length` tokens and
    new_1T are the others, with padding behind them.
    """
    place_1T = jnp.arange(new_1T.shape[1], dtype=jnp.int32)[None]
    count = length - known
    logits_1V, cache = decode.read(
        graph,
        params,
        layers,
        replace(cache, length=known),  # causal: no token sees what lies behind
        new_1T,
        (place_1T < count).astype(jnp.int32),
        jnp.minimum(known + place_1T, length - 1),
        last_R1=(count - 1)[None, None],
    )
    state = State(
        cache=replace(cache, length=length),
        ids_RS=ids_1S,
        prompt_length=length,
        length=length,
        position_R=(length - 1)[None],
        ended_R=jnp.zeros(1, bool),
        fault_R=jnp.zeros(1, jnp.int32),
    )
    return decode.chosen(rules, state, logits_1V)
