"""Beam search over a static KV cache, in one compiled loop.

The rules are those of transformers (`GenerationMixin._beam_search`, 5.24): a continuation that ends
counts only where it is among the best K of the candidates; what goes on is compared with what has
ended by the number of tokens so far; scores are sums of log-probabilities divided by the number of
new tokens, the one that ends them among these, to the power of the length penalty.

Letters: B prompts, K beams, R = B x K rows of the cache, M candidates, S places of prompts and
continuations, N new tokens. Of equal scores the smaller index wins; torch's order is by chance.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.generation.decode import NO_TOKEN_LEFT, NOT_A_NUMBER, Kept, Rules, positions_of, read
from jaxllm.generation.options import Options
from jaxllm.models import Graph, Params

# The score of a place for a continuation that none has taken; added to what must not be chosen.
# Finite as in transformers: with more beams than continuations such a one is a result.
EMPTY = -1e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamRules:
    """What the scores of ended and of running continuations are compared by; a pytree.

    Attributes:
        powers_N: float32, the numbers of new tokens 1, 2, … to the power of the length penalty.
        hopes_N: the same, for what may become of a running continuation of so many tokens.
        is_first_enough: bool [], a prompt is done when K continuations have ended.
    """

    powers_N: jax.Array
    hopes_N: jax.Array
    is_first_enough: jax.Array

    @classmethod
    def of(cls, options: Options, new_tokens: int, places: int) -> "BeamRules":
        """For at most `new_tokens` in buffers of N = `places`."""
        with np.errstate(over="ignore"):
            powers_N = np.arange(1.0, places + 1) ** options.length_penalty  # float64, as Python's
            powers_N = powers_N.astype(np.float32)
        hopes_N = powers_N
        if options.early_stopping == "never" and options.length_penalty > 0:
            hopes_N = np.full_like(powers_N, powers_N[new_tokens - 1])
        is_first_enough = jnp.asarray(options.early_stopping is True)
        return cls(jnp.asarray(powers_N), jnp.asarray(hopes_N), is_first_enough)


def candidates(options: Options, vocabulary: int) -> int:
    """M: of so many K are left to go on, even where all of the best end."""
    return min(max(2, 1 + len(options.eos_token_id)), vocabulary) * options.num_beams


def fill_id(options: Options) -> int:
    """What stands behind a continuation: the first EOS where the pad id is unknown or 0, otherwise
    than without beams; -1 where no token ends one, and a stop string may.
    """
    if not options.eos_token_id:
        return -1
    return options.pad_token_id or options.eos_token_id[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Continuations:
    """K continuations of each prompt, best first; a pytree.

    Attributes:
        ids_BKS: prompt and continuation, then the fill id.
        scores_BK: float32.
        rows_BKN: the row that each token was chosen from, then -1.
    """

    ids_BKS: jax.Array
    scores_BK: jax.Array
    rows_BKN: jax.Array

    def with_scores(self, scores_BM: jax.Array) -> "Continuations":
        return replace(self, scores_BK=scores_BM)

    def best(self, K: int) -> tuple["Continuations", jax.Array]:
        """The K of the highest scores, and which those are."""
        scores_BK, index_BK = jax.lax.top_k(self.scores_BK, K)
        ids_BKS, rows_BKN = _taken(self.ids_BKS, index_BK), _taken(self.rows_BKN, index_BK)
        return Continuations(ids_BKS, scores_BK, rows_BKN), index_BK


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Search:
    """A beam search; a pytree.

    Attributes:
        cache: of R rows, of all tokens but the last, in the order before the last was chosen;
            without the layers' parameters.
        length: int32 [], of prompt and continuation so far.
        position_R: of the last token.
        running: continuations that go on; their scores are plain sums.
        ended: the best that have ended. has_ended_BK: which of them are such, and no empty places.
        may_improve_B: whether `ended` can still change.
        is_over: bool [].
        fault_B: int32, 0 or what went wrong, see `decode.State`.
        scores_NRV: float32, processed log-probabilities, logits_NRV: the model's logits; or None.
    """

    cache: Any
    length: jax.Array
    position_R: jax.Array
    running: Continuations
    ended: Continuations
    has_ended_BK: jax.Array
    may_improve_B: jax.Array
    is_over: jax.Array
    fault_B: jax.Array
    scores_NRV: jax.Array | None
    logits_NRV: jax.Array | None


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def search(
    graph: Graph,
    new_tokens: int,
    beams: int,
    candidates: int,
    kept: Kept,
    params: Params,
    layers: tuple[Any, ...],
    rules: Rules,
    beam_rules: BeamRules,
    ids_BS: jax.Array,
    length: jax.Array,
    until: jax.Array,
    prompt_BP: jax.Array,
    mask_BP: jax.Array,
) -> Search:
    """Reads each prompt once, then writes until no prompt's best continuations can change.

    Args:
        new_tokens: N, places for the continuation. beams: K. candidates: M.
        rules: the processors are of R rows; the keys of B prompts: with them candidates are drawn
            without replacement.
        ids_BS: the prompts, from place 0 on, and the fill id. length: of the prompts.
        until: the greatest length.
        prompt_BP, mask_BP: the same prompts as the model reads them, padded on the left.
    """
    (B, S), K, N = ids_BS.shape, beams, new_tokens
    P = prompt_BP.shape[1]
    cache = replace(graph.merge(params).stack.empty_cache(B, P + N), layers=())
    position_BP = positions_of(mask_BP)
    logits_BV, cache = read(graph, params, layers, cache, prompt_BP, mask_BP, position_BP)
    repeat_R = jnp.repeat(jnp.arange(B), K)
    logits_RV = logits_BV[repeat_R]
    empty = Continuations(
        jnp.broadcast_to(ids_BS[:, None], (B, K, S)),
        jnp.full((B, K), EMPTY),
        jnp.full((B, K, N), -1, jnp.int32),
    )
    start = Search(
        cache=cache.rows(repeat_R),
        length=length,
        position_R=position_BP[repeat_R, -1],
        # All beams are equal yet, and only the first counts.
        running=empty.with_scores(empty.scores_BK.at[:, 0].set(0.0)),
        ended=empty,
        has_ended_BK=jnp.zeros((B, K), bool),
        may_improve_B=jnp.ones(B, bool),
        is_over=jnp.zeros((), bool),
        fault_B=jnp.zeros(B, jnp.int32),
        scores_NRV=jnp.zeros((N, *logits_RV.shape)) if kept.scores else None,
        logits_NRV=jnp.zeros((N, *logits_RV.shape)) if kept.logits else None,
    )
    choose = partial(_chosen, rules, beam_rules, candidates, length, until)

    def step(search: Search) -> Search:
        last = search.length - 1
        row_R = search.running.rows_BKN[:, :, last - length].reshape(-1)
        token_R1 = search.running.ids_BKS[:, :, last].reshape(-1, 1)
        position_R = search.position_R + 1
        ones_R1 = jnp.ones_like(token_R1)
        logits_RV, cache = read(
            graph, params, layers, search.cache.rows(row_R), token_R1, ones_R1, position_R[:, None]
        )
        return choose(replace(search, cache=cache, position_R=position_R), logits_RV)

    first = choose(start, logits_RV)
    return jax.lax.while_loop(lambda search: ~search.is_over, step, first)


def _chosen(
    rules: Rules,
    beam_rules: BeamRules,
    M: int,
    prompt_length: jax.Array,
    until: jax.Array,
    search: Search,
    logits_RV: jax.Array,
) -> Search:
    """The search with one more token in each running continuation, by the logits behind them."""
    B, K, S = search.running.ids_BKS.shape
    n = search.length - prompt_length

    # Candidates: the M best of all tokens behind all running continuations; which of them end.
    log_RV = jax.nn.log_softmax(logits_RV, axis=-1)
    scores_RV = rules.processors(search.running.ids_BKS.reshape(B * K, S), search.length, log_RV)
    sums_BKV = search.running.scores_BK[..., None] + scores_RV.reshape(B, K, -1)
    sum_BM, index_BM = _best(sums_BKV.reshape(B, -1), M, n, rules.keys_R)
    beam_BM, token_BM = jnp.divmod(index_BM, sums_BKV.shape[-1])
    row_BM = beam_BM + K * jnp.arange(B, dtype=jnp.int32)[:, None]
    candidates = Continuations(
        _taken(search.running.ids_BKS, beam_BM).at[:, :, search.length].set(token_BM),
        sum_BM,
        _taken(search.running.rows_BKN, beam_BM).at[:, :, n].set(row_BM),
    )
    ends_BM = rules.ends_V[token_BM] | (search.length + 1 >= until)
    if rules.stops is not None:
        stops_R = rules.stops(candidates.ids_BKS.reshape(B * M, S), search.length + 1)
        ends_BM |= stops_R.reshape(B, M)
    running, _ = candidates.with_scores(sum_BM + EMPTY * ends_BM).best(K)

    # What ends counts if it is among the K best candidates of a prompt that is not done.
    counts_BM = ends_BM & (jnp.arange(M)[None] < K)
    is_done_B = ~search.may_improve_B
    is_done_B |= beam_rules.is_first_enough & search.has_ended_BK.all(1)
    score_BM = sum_BM / beam_rules.powers_N[n] + EMPTY * ~counts_BM + EMPTY * is_done_B[:, None]
    both = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new], axis=1),
        (search.ended, search.has_ended_BK),
        (candidates.with_scores(score_BM), counts_BM),
    )
    ended, index_BK = both[0].best(K)
    has_ended_BK = _taken(both[1], index_BK)

    hope_B = running.scores_BK[:, 0] / beam_rules.hopes_N[n]
    worst_B = jnp.where(has_ended_BK.all(1), ended.scores_BK[:, -1], EMPTY)
    may_improve_B = search.may_improve_B & (hope_B > worst_B)
    is_over = ~may_improve_B.any() | ends_BM.all()
    is_over |= beam_rules.is_first_enough & has_ended_BK.all()

    # A NaN or an infinity among logits is in their sum, hence in each log-probability.
    is_nan_B = jnp.isnan(log_RV[:, 0]).reshape(B, K).any(1)
    is_left_B = is_done_B | (sum_BM[:, 0] > -jnp.inf)
    fault_B = jnp.where(is_nan_B, NOT_A_NUMBER, jnp.where(is_left_B, 0, NO_TOKEN_LEFT))

    def keep(kept: jax.Array | None, new_RV: jax.Array) -> jax.Array | None:
        return None if kept is None else kept.at[n].set(new_RV)

    return Search(
        cache=search.cache,
        length=search.length + 1,
        position_R=search.position_R,
        running=running,
        ended=ended,
        has_ended_BK=has_ended_BK,
        may_improve_B=may_improve_B,
        is_over=is_over,
        fault_B=jnp.where(search.fault_B != 0, search.fault_B, fault_B.astype(jnp.int32)),
        scores_NRV=keep(search.scores_NRV, scores_RV),
        logits_NRV=keep(search.logits_NRV, logits_RV),
    )


def _best(
    sums_BX: jax.Array, M: int, n: jax.Array, keys_B: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The M best sums and their indices, best first; with keys M drawn without replacement."""
    if keys_B is None:
        return jax.lax.top_k(sums_BX, M)

    # The greatest M after Gumbel noise are such a draw (Kool, van Hoof and Welling, 2019).
    def noise(key: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, n), sums_BX.shape[1:])

    _, index_BM = jax.lax.top_k(sums_BX + jax.vmap(noise)(keys_B), M)
    sum_BM, order_BM = jax.lax.top_k(_taken(sums_BX, index_BM), M)
    return sum_BM, _taken(index_BM, order_BM)


def _taken(x_BM: jax.Array, index_BK: jax.Array) -> jax.Array:
    """Of each prompt's entries on axis 1 those of `index_BK`; further axes are taken whole."""
    index = index_BK.reshape(index_BK.shape + (1,) * (x_BM.ndim - 2))
    return jnp.take_along_axis(x_BM, index, axis=1)
