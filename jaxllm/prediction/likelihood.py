"""How likely a causal language model finds text: continuations of contexts, and whole texts.

Texts become tokens as in EleutherAI's evaluation harness (lm-evaluation-harness, `TemplateLM` and
`get_rolling_token_windows`), so that scores are comparable with published ones.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.data.next_tokens import document_ids
from jaxllm.errors import InputError
from jaxllm.generation.prompts import places
from jaxllm.models import Apply, Params
from jaxllm.nn.sharding import batch_sharding, replicated
from jaxllm.training.next_tokens import NextTokens, Scores, next_tokens

# f(arrays of a batch) -> (float32 [B] log-probabilities, bool [B] whether all are greedy)
Forward = Callable[[dict[str, np.ndarray]], tuple[jax.Array, jax.Array]]


class Likelihood(NamedTuple):
    """What a continuation comes to.

    Attributes:
        log_probability: natural logarithm, summed over the tokens of the continuation.
        is_greedy: whether each of its tokens is the likeliest at its place.
        tokens: how many there are.
    """

    log_probability: float
    is_greedy: bool
    tokens: int


class TextLikelihood(NamedTuple):
    """What a whole text comes to.

    Attributes:
        log_probability: natural logarithm, summed over all tokens.
        tokens, bytes: of the text; the bytes are those of UTF-8.
    """

    log_probability: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Of a token; NaN of a text without one."""
        return math.exp(-self.log_probability / self.tokens) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """NaN of a text without a byte."""
        return -self.log_probability / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Judged:
    """A row of the model: `tokens`, of which the last `count` are judged by those before them.

    `is_cut`: there were more of these.
    """

    tokens: list[int]
    count: int
    is_cut: bool = False


@dataclass(frozen=True)
class Rows:
    """Makes rows of text.

    Attributes:
        tokenizer: of the model.
        max_length: tokens that the model reads at a time.
    """

    tokenizer: Any
    max_length: int

    def of_pair(self, context: str, continuation: str) -> Judged:
        """The row that judges what follows a context.

        The tokens are those of both texts together. A context that is too long loses its beginning.
        An empty one is the token that begins texts.

        Raises:
            InputError: the continuation has no token, or more than `max_length`.
        """
        _check_text(context)
        _check_text(continuation)
        # A space belongs to the word behind it in most vocabularies.
        begin = context.rstrip()
        behind = context[len(begin) :] + continuation
        if begin:
            before = self.opened(begin)
            ids = self.opened(begin + behind)[len(before) :]
        else:
            before, ids = [self.prefix], self._encoded(behind)
            ids = ids[1:] if ids[:1] == before else ids
        if not ids:
            raise InputError(
                f"the continuation {continuation!r:.80} has no token of its own behind its "
                "context; expected some text"
            )
        if len(ids) > self.max_length:
            raise InputError(
                f"the continuation {continuation[:40]!r} has {len(ids)} tokens, expected at most "
                f"{self.max_length}, which are read at a time"
            )
        whole = before + ids
        tokens = whole[-(self.max_length + 1) :]
        return Judged(tokens, len(ids), is_cut=len(tokens) < len(whole))

    def of_text(self, text: str, stride: int) -> tuple[int, list[Judged]]:
        """(tokens of a text, the rows that judge each of them once), see `windows`."""
        _check_text(text)
        ids = self._encoded(text)
        return len(ids), windows(ids, self.prefix, self.max_length, stride)

    @cached_property
    def prefix(self) -> int:
        """The token by which the first one of a text is judged."""
        return document_ids(self.tokenizer)[0]

    @cached_property
    def _opening(self) -> list[int]:
        """What the tokenizer puts before each text by itself; nothing where it is as GPT-2's."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        count = encoded["special_tokens_mask"].index(0)
        return list(encoded["input_ids"][:count])

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def opened(self, text: str) -> list[int]:
        ids, opening = self._encoded(text), self._opening
        return ids if ids[: len(opening)] == opening else opening + ids


@dataclass(frozen=True)
class Judge:
    """Judges text by a causal language model, in batches of few static shapes.

    Attributes:
        forward: the model, see `forward_of`.
        rows: makes rows of text.
        batch_size: rows of a batch.
    """

    forward: Forward
    rows: Rows
    batch_size: int

    def loglikelihood(self, pairs: Iterable[tuple[str, str]]) -> list[Likelihood]:
        """Of each (context, continuation), how likely the second follows the first.

        Raises:
            InputError: a pair is none, or as `Rows.of_pair` says.
        """
        return self.judged([self._row(i, pair) for i, pair in enumerate(pairs)])

    def _row(self, i: int, pair: tuple[str, str]) -> Judged:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"pairs[{i}]: found {pair!r:.80}, expected (context, continuation)")
        with _named(f"pairs[{i}]"):
            return self.rows.of_pair(*pair)

    def loglikelihood_rolling(
        self, texts: Iterable[str], stride: int | None = None
    ) -> list[TextLikelihood]:
        """Of each text, how likely it is; every token is judged once.

        A text longer than the model reads at a time is judged in windows, each `stride` tokens
        further (null: as many as the model reads): a smaller one shows each token more of what is
        before it and takes longer. The first token is judged behind the token that begins texts.

        Raises:
            InputError: no list of texts, or a stride that is none.
        """
        longest = self.rows.max_length
        stride = longest if stride is None else stride
        if not 1 <= stride <= longest:
            raise InputError(f"stride: found {stride}, expected 1 to {longest}")
        if isinstance(texts, str):
            raise InputError("texts: found one text, expected a list of them: [text]")
        texts, cut = list(texts), []
        for i, text in enumerate(texts):
            with _named(f"texts[{i}]"):
                cut.append(self.rows.of_text(text, stride))
        found = iter(self.judged([row for _, rows in cut for row in rows]))
        result = []
        for text, (count, rows) in zip(texts, cut, strict=True):
            parts = [next(found) for _ in rows]
            assert sum(part.tokens for part in parts) == count, "each token is judged once"
            total = math.fsum(part.log_probability for part in parts)
            result.append(TextLikelihood(total, count, len(text.encode())))
        return result

    def judged(self, rows: Sequence[Judged]) -> list[Likelihood]:
        """What each row comes to; all batches are dispatched before the first is read.

        Raises:
            InputError: logits that are NaN.
        """
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, row in enumerate(rows):
            T = min(places(len(row.tokens) - 1), self.rows.max_length)
            shapes.setdefault((T, min(places(row.count), T)), []).append(i)
        pending = []
        for shape, members in sorted(shapes.items()):
            for start in range(0, len(members), self.batch_size):
                own = members[start : start + self.batch_size]
                batch = _batch([rows[i] for i in own], self.batch_size, *shape)
                pending.append((own, self.forward(batch)))
        result: dict[int, Likelihood] = {}
        for own, outputs in pending:
            totals, greedy = jax.device_get(outputs)
            for i, total, is_greedy in zip(own, totals, greedy, strict=False):
                if math.isnan(total):
                    raise InputError(
                        "the model's logits are NaN; check that its weights and its config.json "
                        "are whole, or compute in float32"
                    )
                result[i] = Likelihood(float(total), bool(is_greedy), rows[i].count)
        return [result[i] for i in range(len(rows))]


def windows(tokens: list[int], prefix: int, length: int, stride: int) -> list[Judged]:
    """Rows that judge each token once, none longer than `length` places: the first judges so many,
    each other one `stride` more, the last the rest, all with as many tokens before them as fit.
    """
    whole = [prefix, *tokens]
    rows = []
    done = 0
    while done < len(tokens):
        count = min(length if done == 0 else stride, len(tokens) - done)
        done += count
        rows.append(Judged(whole[max(0, done - length) : done + 1], count))
    return rows


def forward_of(
    apply: Apply, vocabulary: int, mesh: Mesh | None = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Jitted, params and a batch to (float32 [B], bool [B]): log-probabilities, whether greedy.

    On a mesh, rows are split over its devices, and what comes out is whole on each of them. Logits
    are computed only where a token is judged, and not all of them at a time.
    """

    def forward(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        labels, weights = batch["labels"], batch["label_weights"]

        def judge(scores: Scores, params: Any, x_BPD: jax.Array) -> NextTokens:
            return next_tokens(scores, params, x_BPD, labels, weights, vocabulary=vocabulary)

        names = ("input_ids", "segment_ids", "head_positions")
        out = apply(params, **{name: batch[name] for name in names}, judge=judge)
        hits_BP = out.hits_BT | (weights == 0)
        return -jnp.sum(jnp.where(weights == 0, 0, out.losses_BT), 1), jnp.all(hits_BP, 1)

    if mesh is None:
        return jax.jit(forward)

    def on_mesh(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return forward(params, batch)

    jitted = jax.jit(on_mesh, out_shardings=replicated(mesh))
    return lambda params, batch: jitted(params, jax.device_put(batch, batch_sharding(mesh)))


def _batch(rows: list[Judged], height: int, T: int, P: int) -> dict[str, np.ndarray]:
    """int32 [B, T] `input_ids`, `segment_ids`; [B, P] `head_positions`, `labels`, and float32
    `label_weights`. B = height.
    """
    batch = {name: np.zeros((height, T), np.int32) for name in ("input_ids", "segment_ids")}
    batch |= {name: np.zeros((height, P), np.int32) for name in ("head_positions", "labels")}
    batch["label_weights"] = np.zeros((height, P), np.float32)
    for i, row in enumerate(rows):
        tokens, count = row.tokens, row.count
        n = len(tokens) - 1  # what comes behind the last one is not asked
        batch["input_ids"][i, :n] = tokens[:-1]
        batch["segment_ids"][i, :n] = 1
        batch["head_positions"][i, :count] = range(n - count, n)
        batch["labels"][i, :count] = tokens[-count:]
        batch["label_weights"][i, :count] = 1
    return batch


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"found {type(text).__name__}, expected a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("half a surrogate pair is no character") from None


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says where the text is that an InputError is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
