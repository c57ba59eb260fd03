"""Who sees whom in an attention, as one value: `Visibility`."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

HIDDEN_ID = -1  # of a key that no query sees: padding
# Added to masked scores. Finite, so that a query with every key masked gives a uniform row, not
# NaN.
MASKED = -1e30


def _static(default: Any) -> Any:
    return field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Visibility:
    """A query sees the keys of its id, within the window, and none behind it if `causal`.

    Self-attention over rows, packed or padded, causal or not, cross-attention (T and S differ) and
    queries that go on where a cache ends (`q_places_BT`) are all values of it. B may be 1 where it
    holds for all rows.

    Attributes:
        queries, keys: T and S.
        causal: a query sees no key with a higher place.
        window: (to the left, to the right): the places that a query sees before and behind its own.
        q_ids_BT, k_ids_BS: int32; queries without ids have the id 1, keys without are seen by all.
        q_places_BT, k_places_BS: int32, where in its row each token stands; None: 0, 1, 2, …
        bias_BNTS: float32, added to the scores; any of its axes but the last may be 1.
        is_global: bool []; where true, the window has no effect.
    """

    queries: int = _static(0)
    keys: int = _static(0)
    causal: bool = _static(False)
    window: tuple[int, int] | None = _static(None)
    q_ids_BT: jax.Array | None = None
    k_ids_BS: jax.Array | None = None
    q_places_BT: jax.Array | None = None
    k_places_BS: jax.Array | None = None
    bias_BNTS: jax.Array | None = None
    is_global: jax.Array | None = None

    @classmethod
    def of_rows(
        cls,
        length: int,
        mask: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        *,
        causal: bool = False,
        window: tuple[int, int] | None = None,
        bias_BNTS: jax.Array | None = None,
    ) -> "Visibility":
        """Self-attention over rows of `length` tokens.

        A `mask` [B, S] (0 = padding) hides keys from every query, as in BERT. With `segments_BT` a
        token sees those of its own segment; segment 0, the padding, sees only itself.

        A mask [B, T, S] or [B, N, T, S], of which any axis but the last may be 1, says of each
        query whether it sees a key (bool, or int with 0 for no), or is added to the scores
        (floating). As in transformers such a mask stands in the place of `causal` and `window`.
        """
        keys = segments_BT
        if mask is not None and mask.ndim > 2:
            causal, window, bias_BNTS = False, None, as_bias(mask)
        elif mask is not None:
            ids = jnp.ones_like(mask) if segments_BT is None else segments_BT
            keys = jnp.where(mask != 0, ids, HIDDEN_ID)
        return cls(
            length,
            length,
            causal,
            window,
            q_ids_BT=segments_BT,
            k_ids_BS=keys,
            bias_BNTS=bias_BNTS,
        )

    @property
    def is_rows(self) -> bool:
        """Whether queries and keys are the tokens of whole rows, and ids and window say it all."""
        parts = (self.q_places_BT, self.k_places_BS, self.bias_BNTS)
        return self.queries == self.keys and all(part is None for part in parts)

    @property
    def sees_all(self) -> bool:
        """Whether every query sees every key."""
        return self.k_ids_BS is None and self.window is None and not self.causal

    def at(self, queries_BP: jax.Array) -> "Visibility":
        """What the P queries at these positions of each row see."""
        ids, bias = self.q_ids_BT, self.bias_BNTS
        if ids is not None:
            ids = jnp.take_along_axis(_rows(ids, queries_BP), queries_BP, axis=1)
        if bias is not None and bias.shape[2] > 1:
            bias = _rows(bias, queries_BP)
            bias = jnp.take_along_axis(bias, queries_BP[:, None, :, None], axis=2)
        places = queries_BP
        if self.q_places_BT is not None:
            places = jnp.take_along_axis(_rows(self.q_places_BT, places), places, axis=1)
        return replace(
            self,
            queries=queries_BP.shape[1],
            q_ids_BT=ids,
            q_places_BT=places,
            bias_BNTS=bias,
        )

    def of_layer(self, is_global: jax.Array | None) -> "Visibility":
        """The same where `is_global` says whether the window counts."""
        return replace(self, is_global=is_global)

    def without_window(self) -> "Visibility":
        return replace(self, window=None, is_global=None)

    def mask(self) -> jax.Array | None:
        """bool [B or 1, 1, T or 1, S], true where a query sees a key; None where all see all."""
        masks = []
        if self.k_ids_BS is not None:
            own = 1 if self.q_ids_BT is None else self.q_ids_BT[:, None, :, None]
            masks.append(self.k_ids_BS[:, None, None, :] == own)
        if self.causal or self.window is not None:
            ahead = self._places(self.k_places_BS, self.keys)[:, None, None, :]
            ahead = ahead - self._places(self.q_places_BT, self.queries)[:, None, :, None]
            if self.causal:
                masks.append(ahead <= 0)
            if self.window is not None:
                left, right = self.window
                near = (ahead >= -left) & (ahead <= right)
                masks.append(near if self.is_global is None else near | self.is_global)
        if not masks:
            return None
        mask = masks[0]
        for other in masks[1:]:
            mask = mask & other
        return mask

    @staticmethod
    def _places(places: jax.Array | None, count: int) -> jax.Array:
        return jnp.arange(count, dtype=jnp.int32)[None] if places is None else places


def as_bias(mask: jax.Array) -> jax.Array:
    """float32 [B, N, T, S] of a mask [B, T, S] or [B, N, T, S], see `Visibility.of_rows`."""
    if not jnp.issubdtype(mask.dtype, jnp.floating):
        mask = jnp.where(mask != 0, 0.0, MASKED)
    bias = jnp.maximum(mask.astype(jnp.float32), MASKED)  # no -inf, see MASKED
    return bias[:, None] if bias.ndim == 3 else bias


def _rows(x: jax.Array, like_B: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, (len(like_B), *x.shape[1:]))


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """int32 [B, T]: 0, 1, 2, … from the first token of each run of one segment id."""
    T = segments_BT.shape[1]
    index_BT = jax.lax.broadcasted_iota(jnp.int32, segments_BT.shape, 1)
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :T]
    starts_BT = jnp.where(segments_BT != before_BT, index_BT, 0)
    return index_BT - jax.lax.cummax(starts_BT, axis=1)
