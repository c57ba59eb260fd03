"""What changes logits before a token is chosen: the processors of transformers, in its order.

Each is a function of the tokens so far and the logits, in static shapes, so that it works inside of
a compiled loop. Letters: R rows, S places for tokens of which the first `length` are filled.
Of equal logits the smaller index stands first where an order counts; torch's order is by chance,
its top-k keeps all tokens that equal the last one, its top-p those of higher indices.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.generation.options import Options

_STATIC: dict[str, Any] = {"static": True}
_NO = -jnp.inf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Processors:
    """The processors that some options ask for; `None` stands for one that is not asked for.

    A pytree: which there are, and the static sizes, a program is compiled for; values are not.

    Attributes:
        min_length, max_length: int32 [], of prompt and continuation.
        ignored_R: tokens of padding that a prompt begins with.
        eos_V, suppressed_V, begin_suppressed_V: masks of tokens.
        begin: int32 [], the length at which `begin_suppressed_V` counts.
        bad_words: (beginnings [W, n], last tokens [W]) for the words of each length n + 1.
        forced_eos: int32 [E].
        kept: tokens that sampling leaves at least.
    """

    min_length: jax.Array
    max_length: jax.Array
    ignored_R: jax.Array
    begin: jax.Array
    eos_V: jax.Array | None = None
    repetition_penalty: jax.Array | None = None
    bad_words: tuple[tuple[jax.Array, jax.Array], ...] = ()
    forced_bos: jax.Array | None = None
    forced_eos: jax.Array | None = None
    suppressed_V: jax.Array | None = None
    begin_suppressed_V: jax.Array | None = None
    temperature: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    typical_p: jax.Array | None = None
    epsilon_cutoff: jax.Array | None = None
    eta_cutoff: jax.Array | None = None
    no_repeat_ngram_size: int = field(default=0, metadata=_STATIC)
    top_k: int = field(default=0, metadata=_STATIC)
    kept: int = field(default=1, metadata=_STATIC)
    renormalize: bool = field(default=False, metadata=_STATIC)

    @classmethod
    def of(
        cls,
        options: Options,
        *,
        vocabulary: int,
        ignored_R: np.ndarray,
        prompt_length: int,
        min_length: int,
        max_length: int,
    ) -> "Processors":
        """Those of `options`, for prompts of one length."""
        eos = options.eos_token_id

        def mask(ids: tuple[int, ...]) -> np.ndarray | None:
            if not ids:
                return None
            flags = np.zeros(vocabulary, bool)
            flags[list(ids)] = True
            return flags

        def number(value: float | None, without: float | None) -> Any:
            return None if value is None or value == without else np.float32(value)

        words: dict[int, list[tuple[int, ...]]] = {}
        for word in dict.fromkeys(options.bad_words_ids):
            if len(word) > 1 or word[0] not in eos:
                words.setdefault(len(word) - 1, []).append(word)
        forced_bos = options.forced_bos_token_id
        after_bos = prompt_length == 1 and forced_bos is not None
        given: dict[str, Any] = {
            "min_length": np.int32(min_length),
            "max_length": np.int32(max_length),
            "ignored_R": ignored_R.astype(np.int32),
            "begin": np.int32(prompt_length + after_bos),
            "eos_V": mask(eos) if min_length > prompt_length else None,
            "repetition_penalty": number(options.repetition_penalty, 1.0),
            "bad_words": tuple(
                (
                    np.array([word[:-1] for word in some], np.int32).reshape(len(some), n),
                    np.array([word[-1] for word in some], np.int32),
                )
                for n, some in sorted(words.items())
            ),
            "forced_bos": None if forced_bos is None else np.int32(forced_bos),
            "forced_eos": np.array(options.forced_eos_token_id, np.int32)
            if options.forced_eos_token_id
            else None,
            "suppressed_V": mask(options.suppress_tokens),
            "begin_suppressed_V": mask(options.begin_suppress_tokens),
            "no_repeat_ngram_size": options.no_repeat_ngram_size,
            "renormalize": options.renormalize_logits,
        }
        if options.do_sample:
            kept = len(eos) + 1 if eos else 2
            kept = kept if options.num_beams > 1 else 1
            given |= {
                "temperature": number(options.temperature, 1.0),
                "top_k": min(max(options.top_k, kept), vocabulary) if options.top_k else 0,
                "top_p": number(options.top_p, 1.0),
                "min_p": number(options.min_p, None),
                "typical_p": number(options.typical_p, 1.0),
                "epsilon_cutoff": number(options.epsilon_cutoff, 0.0),
                "eta_cutoff": number(options.eta_cutoff, 0.0),
                "kept": min(kept, vocabulary),
            }
        return cls(**given)

    def __call__(self, ids_RS: jax.Array, length: jax.Array, scores_RV: jax.Array) -> jax.Array:
        """Scores float32 [R, V] after all processors, -inf for a token that may not follow.

        The first `length` of ids_RS are prompt and continuation.
        """
        scores = scores_RV
        if self.repetition_penalty is not None:
            seen_RV = _seen(ids_RS, self.ignored_R, length, scores.shape[-1])
            less = jnp.where(
                scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty
            )
            scores = jnp.where(seen_RV, less, scores)
        if self.no_repeat_ngram_size:
            scores = _without_repeats(ids_RS, length, scores, self.no_repeat_ngram_size)
        for beginnings_Wn, last_W in self.bad_words:
            scores = _without_words(ids_RS, length, scores, beginnings_Wn, last_W)
        if self.eos_V is not None:
            scores = jnp.where((length < self.min_length) & self.eos_V[None], _NO, scores)
        if self.forced_bos is not None:
            scores = _forced(scores, length == 1, self.forced_bos)
        if self.forced_eos is not None:
            scores = _forced(scores, length == self.max_length - 1, self.forced_eos)
        if self.suppressed_V is not None:
            scores = jnp.where(self.suppressed_V[None], _NO, scores)
        if self.begin_suppressed_V is not None:
            first = length == self.begin
            scores = jnp.where(first & self.begin_suppressed_V[None], _NO, scores)
        scores = self._warped(scores)
        return jax.nn.log_softmax(scores, axis=-1) if self.renormalize else scores

    def _warped(self, scores: jax.Array) -> jax.Array:
        """What sampling draws from."""
        if self.temperature is not None:
            scores = scores / self.temperature
        if self.top_k:
            scores = jnp.where(_best(scores, self.top_k), scores, _NO)
        if self.top_p is not None:
            scores = top_p(scores, self.top_p, self.kept)
        if self.min_p is not None:
            probability = jax.nn.softmax(scores, axis=-1)
            few = probability < self.min_p * probability.max(-1, keepdims=True)
            scores = jnp.where(few & ~_best(probability, self.kept), _NO, scores)
        if self.typical_p is not None:
            scores = typical(scores, self.typical_p, self.kept)
        if self.epsilon_cutoff is not None:
            few = jax.nn.softmax(scores, axis=-1) < self.epsilon_cutoff
            scores = jnp.where(few & ~_best(scores, self.kept), _NO, scores)
        if self.eta_cutoff is not None:
            entropy = _entropy(jax.nn.log_softmax(scores, axis=-1))
            eta = jnp.minimum(self.eta_cutoff, jnp.sqrt(self.eta_cutoff) * jnp.exp(-entropy))
            few = jax.nn.softmax(scores, axis=-1) < eta
            scores = jnp.where(few & ~_best(scores, self.kept), _NO, scores)
        return scores


def top_p(scores_RV: jax.Array, mass: jax.Array, kept: int) -> jax.Array:
    """-inf for the least probable tokens that together have at most 1 - `mass`."""
    order_RV = jnp.argsort(-scores_RV, axis=-1, stable=True)[
        :, ::-1
    ]  # ascending, of equals the last
    ascending_RV = jnp.take_along_axis(scores_RV, order_RV, axis=-1)
    sums_RV = jnp.cumsum(jax.nn.softmax(ascending_RV, axis=-1), axis=-1)
    few_RV = (sums_RV <= 1 - mass).at[:, -kept:].set(False)
    return jnp.where(_unsorted(few_RV, order_RV), _NO, scores_RV)


def typical(scores_RV: jax.Array, mass: jax.Array, kept: int) -> jax.Array:
    """-inf for the tokens whose information is farthest from the entropy, beyond those that
    together have `mass` (Meister et al., "Locally Typical Sampling", 2022).
    """
    log_RV = jax.nn.log_softmax(scores_RV, axis=-1)
    far_RV = jnp.abs(-log_RV - _entropy(log_RV))
    order_RV = jnp.argsort(far_RV, axis=-1, stable=True)
    sorted_RV = jnp.take_along_axis(scores_RV, order_RV, axis=-1)
    sums_RV = jnp.cumsum(jax.nn.softmax(sorted_RV, axis=-1), axis=-1)
    last_R1 = (sums_RV < mass).sum(-1, keepdims=True).clip(max=scores_RV.shape[-1] - 1)
    place_1V = jnp.arange(scores_RV.shape[-1])[None]
    few_RV = (place_1V > last_R1) & (place_1V >= kept)
    return jnp.where(_unsorted(few_RV, order_RV), _NO, scores_RV)


def _entropy(log_RV: jax.Array) -> jax.Array:
    """[R, 1], of log-probabilities of which some may be -inf."""
    terms = jnp.where(jnp.isneginf(log_RV), 0.0, log_RV * jnp.exp(log_RV))
    return -terms.sum(-1, keepdims=True)


def _unsorted(flags_RV: jax.Array, order_RV: jax.Array) -> jax.Array:
    rows_R1 = jnp.arange(len(order_RV))[:, None]
    return jnp.zeros_like(flags_RV).at[rows_R1, order_RV].set(flags_RV)


def _best(scores_RV: jax.Array, count: int) -> jax.Array:
    """Which are among the `count` best of their row."""
    index = jax.lax.top_k(scores_RV, count)[1]
    rows_R1 = jnp.arange(len(scores_RV))[:, None]
    return jnp.zeros(scores_RV.shape, bool).at[rows_R1, index].set(True)


def _forced(scores_RV: jax.Array, now: jax.Array, tokens: jax.Array) -> jax.Array:
    only_1V = jnp.full((1, scores_RV.shape[-1]), _NO).at[:, tokens].set(0.0)
    return jnp.where(now, only_1V, scores_RV)


def _marked(ids_RS: jax.Array, counts_RS: jax.Array, vocabulary: int) -> jax.Array:
    """bool [R, V]: the tokens of ids_RS that count."""
    column_RS = jnp.where(counts_RS, ids_RS, vocabulary)
    rows_R1 = jnp.arange(len(ids_RS))[:, None]
    return jnp.zeros((len(ids_RS), vocabulary), bool).at[rows_R1, column_RS].set(True, mode="drop")


def _seen(ids_RS: jax.Array, ignored_R: jax.Array, length: jax.Array, vocabulary: int) -> jax.Array:
    place_1S = jnp.arange(ids_RS.shape[1])[None]
    counts_RS = (place_1S < length) & (place_1S >= ignored_R[:, None])
    return _marked(ids_RS, counts_RS, vocabulary)


def _without_repeats(
    ids_RS: jax.Array, length: jax.Array, scores_RV: jax.Array, size: int
) -> jax.Array:
    """-inf for the last tokens of the n-grams that begin as the row ends."""
    R, S = ids_RS.shape
    if S < size:
        return scores_RV
    matches = jnp.broadcast_to(jnp.arange(S - size + 1)[None] + size <= length, (R, S - size + 1))
    for i in range(size - 1):
        own_R1 = jax.lax.dynamic_slice(ids_RS, (0, length + 1 - size + i), (R, 1))
        matches &= ids_RS[:, i : S - size + 1 + i] == own_R1
    banned_RV = _marked(ids_RS[:, size - 1 :], matches, scores_RV.shape[-1])
    return jnp.where(banned_RV, _NO, scores_RV)


def _without_words(
    ids_RS: jax.Array,
    length: jax.Array,
    scores_RV: jax.Array,
    beginnings_Wn: jax.Array,
    last_W: jax.Array,
) -> jax.Array:
    """-inf for the last tokens of the words whose beginnings the rows end with."""
    R, S = ids_RS.shape
    W, n = beginnings_Wn.shape
    if n > S:
        return scores_RV
    end_Rn = jax.lax.dynamic_slice(ids_RS, (0, length - n), (R, n))
    matches_RW = (end_Rn[:, None] == beginnings_Wn[None]).all(-1) & (length >= n)
    banned_RV = _marked(jnp.broadcast_to(last_W[None], (R, W)), matches_RW, scores_RV.shape[-1])
    return jnp.where(banned_RV, _NO, scores_RV)
