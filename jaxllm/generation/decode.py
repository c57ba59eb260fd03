"""Tokens one after the other: the prompts are read at once, then one compiled loop writes.

Letters: R rows, P places of the prompts, S of prompts and continuations, N new tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.generation.processors import Processors
from jaxllm.generation.stop_strings import StopStrings
from jaxllm.models import Graph, Params

# Why a row has stopped that has no more tokens to go on with.
NOT_A_NUMBER, NO_TOKEN_LEFT = 1, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rules:
    """How tokens are chosen and when a row ends; a pytree.

    Attributes:
        processors: change the logits.
        ends_V: bool, whether a token ends a row.
        fill: int32 [], what stands behind the end of a row; -1: rows go on.
        stops: strings that end a row.
        keys_R: of each row's draws; None: the most probable token is taken.
    """

    processors: Processors
    ends_V: jax.Array
    fill: jax.Array
    stops: StopStrings | None = None
    keys_R: jax.Array | None = None


@dataclass(frozen=True)
class Kept:
    """What is kept of each step besides the token: the scores that it was chosen by, the model's
    logits, its log-probability.
    """

    scores: bool = False
    logits: bool = False
    log_probabilities: bool = False


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Rows that are being written; a pytree.

    Attributes:
        cache: of all tokens but the last; without the layers' parameters.
        ids_RS: prompt and continuation, the first `length` filled.
        prompt_length, length: int32 [].
        position_R: of the last token.
        ended_R: bool.
        fault_R: int32, 0 or what went wrong: NOT_A_NUMBER, NO_TOKEN_LEFT.
        scores_NRV, logits_NRV, log_probabilities_NR: float32, or None.
    """

    cache: Any
    ids_RS: jax.Array
    prompt_length: jax.Array
    length: jax.Array
    position_R: jax.Array
    ended_R: jax.Array
    fault_R: jax.Array
    scores_NRV: jax.Array | None = None
    logits_NRV: jax.Array | None = None
    log_probabilities_NR: jax.Array | None = field(default=None)


@partial(jax.jit, static_argnums=0)
def unstacked(graph: Graph, params: Params) -> tuple[Any, ...]:
    """The parameters of each layer, cut out of the stacked ones once and not for each token."""
    return graph.merge(params).stack.empty_cache(1, 1).layers


def read(
    graph: Graph,
    params: Params,
    layers: tuple[Any, ...],
    cache: Any,
    prompt_RP: jax.Array,
    mask_RP: jax.Array,
    position_RP: jax.Array,
    last_R1: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """(float32 logits [R, V] behind the place `last_R1`, by default the last one, the cache with
    the tokens in it).
    """
    R, P = prompt_RP.shape
    out = graph.merge(params)(
        prompt_RP,
        attention_mask=mask_RP,
        position_ids=position_RP,
        cache=replace(cache, layers=layers),
        head_positions=jnp.full((R, 1), P - 1, jnp.int32) if last_R1 is None else last_R1,
    )
    return out.logits[:, 0].astype(jnp.float32), replace(out.cache, layers=())


def positions_of(mask_RP: jax.Array) -> jax.Array:
    """Position ids that count the tokens that are not padding."""
    return jnp.where(mask_RP != 0, jnp.cumsum(mask_RP, axis=1) - 1, 0).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 1, 2))
def start(
    graph: Graph,
    new_tokens: int,
    kept: Kept,
    params: Params,
    layers: tuple[Any, ...],
    rules: Rules,
    ids_RS: jax.Array,
    length: jax.Array,
    prompt_RP: jax.Array,
    mask_RP: jax.Array,
) -> State:
    """The rows with their first new token.

    Args:
        new_tokens: N, places for the continuation.
        ids_RS: the prompts, from place 0 on, and places for what follows. length: of the prompts.
        prompt_RP, mask_RP: the same prompts as the model reads them, padded on the left.
    """
    R, P = prompt_RP.shape
    cache = replace(graph.merge(params).stack.empty_cache(R, P + new_tokens), layers=())
    position_RP = positions_of(mask_RP)
    logits_RV, cache = read(graph, params, layers, cache, prompt_RP, mask_RP, position_RP)
    shape = (new_tokens, *logits_RV.shape)
    state = State(
        cache=cache,
        ids_RS=ids_RS,
        prompt_length=length,
        length=length,
        position_R=position_RP[:, -1],
        ended_R=jnp.zeros(R, bool),
        fault_R=jnp.zeros(R, jnp.int32),
        scores_NRV=jnp.zeros(shape, jnp.float32) if kept.scores else None,
        logits_NRV=jnp.zeros(shape, jnp.float32) if kept.logits else None,
        log_probabilities_NR=jnp.zeros(shape[:2], jnp.float32) if kept.log_probabilities else None,
    )
    return chosen(rules, state, logits_RV)


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def advance(
    graph: Graph,
    params: Params,
    layers: tuple[Any, ...],
    rules: Rules,
    state: State,
    until: jax.Array,
) -> State:
    """The rows with `until` tokens, prompt included, or with fewer where all have ended."""

    def goes_on(state: State) -> jax.Array:
        return (state.length < until) & ~state.ended_R.all()

    def step(state: State) -> State:
        last_R1 = jax.lax.dynamic_slice_in_dim(state.ids_RS, state.length - 1, 1, axis=1)
        position_R = state.position_R + 1
        ones_R1 = jnp.ones_like(last_R1)
        logits_RV, cache = read(
            graph, params, layers, state.cache, last_R1, ones_R1, position_R[:, None]
        )
        return chosen(rules, replace(state, cache=cache, position_R=position_R), logits_RV)

    return jax.lax.while_loop(goes_on, step, state)


def chosen(rules: Rules, state: State, logits_RV: jax.Array) -> State:
    """The state with one more token a row, by the logits behind the last one."""
    scores_RV = rules.processors(state.ids_RS, state.length, logits_RV)
    step = state.length - state.prompt_length
    if rules.keys_R is None:
        token_R = jnp.argmax(scores_RV, axis=-1).astype(jnp.int32)
    else:
        token_R = jax.vmap(partial(_draw, step))(rules.keys_R, scores_RV)
    # Of NaNs argmax and top_k make what they will: a row with one has no next token.
    fault_R = jnp.where(
        jnp.isnan(logits_RV).any(-1),
        NOT_A_NUMBER,
        jnp.where(jnp.isneginf(scores_RV).all(-1), NO_TOKEN_LEFT, 0),
    )
    fault_R = jnp.where(state.ended_R, state.fault_R, fault_R.astype(jnp.int32))
    token_R = jnp.where(state.ended_R & (rules.fill >= 0), rules.fill, token_R)
    ids_RS = jax.lax.dynamic_update_slice(state.ids_RS, token_R[:, None], (0, state.length))
    ended_R = state.ended_R | (fault_R != 0) | rules.ends_V[token_R]
    if rules.stops is not None:
        ended_R |= rules.stops(ids_RS, state.length + 1)

    def keep(kept: jax.Array | None, make: Callable[[], jax.Array]) -> jax.Array | None:
        if kept is None:
            return None
        return jax.lax.dynamic_update_index_in_dim(kept, make(), step, axis=0)

    def log_probability() -> jax.Array:
        log_RV = jax.nn.log_softmax(scores_RV, axis=-1)
        chosen_R = jnp.take_along_axis(log_RV, token_R[:, None], axis=-1)[:, 0]
        return jnp.where(state.ended_R, 0.0, chosen_R)

    return replace(
        state,
        ids_RS=ids_RS,
        length=state.length + 1,
        ended_R=ended_R,
        fault_R=fault_R,
        scores_NRV=keep(state.scores_NRV, lambda: scores_RV),
        logits_NRV=keep(state.logits_NRV, lambda: logits_RV),
        log_probabilities_NR=keep(state.log_probabilities_NR, log_probability),
    )


def _draw(step: jax.Array, key: jax.Array, scores_V: jax.Array) -> jax.Array:
    return jax.random.categorical(jax.random.fold_in(key, step), scores_V).astype(jnp.int32)


@partial(jax.jit, static_argnums=1)
def row_keys(seed: jax.Array, copies: int, row_R: jax.Array) -> jax.Array:
    """Keys of rows: each prompt's number and, of its copies, which one it is."""
    key = jax.random.key(seed)

    def one(row: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, row // copies), row % copies)

    return jax.vmap(one)(row_R)
