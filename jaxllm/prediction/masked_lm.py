"""Answers text with what its masks stand for: prediction of a masked language model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.errors import InputError
from jaxllm.prediction.batched import BatchSizes
from jaxllm.prediction.classification import short
from jaxllm.prediction.inputs import RowError
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.texts import TextPredictor

CANDIDATES = 5  # of a mask


def filler(model: SavedModel, batch_sizes: BatchSizes) -> TextPredictor:
    """`masks`: for each mask in the text the most probable tokens, best first, each with `token`,
    `token_id`, `score` (its probability) and, where the text has one mask, `text`, the text with
    the token in the mask's place.

    A text without a mask, or with one that was cut off, is an error.
    """
    tokenizer = model.tokenizer
    if tokenizer.mask_token is None:
        raise InputError(
            f"{model.directory}: the tokenizer has no mask token, so no text can be filled in; "
            "expected mask_token in tokenizer_config.json"
        )
    mask, mask_id = str(tokenizer.mask_token), tokenizer.mask_token_id
    known = vocabulary_size(tokenizer)  # models may have more logits, of no token

    def best(module: Any, rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits_BPV = module(**rows).logits.astype(jnp.float32)
        total_BP1 = jax.nn.logsumexp(logits_BPV, axis=-1, keepdims=True)
        best_BPK, ids_BPK = jax.lax.top_k(logits_BPV[..., :known], min(CANDIDATES, known))
        return jnp.exp(best_BPK - total_BP1), ids_BPK

    compiled = model.compiled(best)

    def forward(rows: dict[str, np.ndarray]) -> Any:
        masked_BT = (rows["input_ids"] == mask_id) & (rows["segment_ids"] > 0)
        scores_BPK, ids_BPK = compiled({**rows, "head_positions": mask_positions(masked_BT)})
        return scores_BPK, ids_BPK, masked_BT.sum(axis=1)

    def answer(outputs: Any, text: str) -> dict[str, Any]:
        scores_PK, ids_PK, count = outputs
        written = text.count(mask)
        if not written:
            raise RowError(f"the text has no {mask}")
        if count < written:
            raise RowError(f"the text is too long: {written - count} of its {written} {mask} cut")

        def candidate(score: float, token_id: int) -> dict[str, Any]:
            token = spell(tokenizer, [token_id])
            found = {"token": token, "token_id": token_id, "score": short(score)}
            return found if written > 1 else {**found, "text": fill(tokenizer, text, token_id)}

        best_of_each = zip(scores_PK[:count].tolist(), ids_PK[:count].tolist(), strict=True)
        return {"masks": [list(map(candidate, *best)) for best in best_of_each]}

    return TextPredictor.of(model, batch_sizes, forward, answer)


def fill(tokenizer: Any, text: str, token_id: int) -> str:
    """`text` with the token for its one mask, as the tokenizer spells it behind something else: one
    that continues a word joins what is before the mask.
    """
    mask = str(tokenizer.mask_token)
    behind = spell(tokenizer, [tokenizer.mask_token_id, token_id]).removeprefix(mask)
    before, after = text.split(mask)
    return (before if behind[:1].isspace() else before.rstrip()) + behind.lstrip() + after


def spell(tokenizer: Any, ids: list[int]) -> str:
    """Tokens as text, special ones too."""
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def mask_positions(masked_BT: np.ndarray) -> np.ndarray:
    """int32 [B, P]: where each row's masks are, in order, then other positions.

    P is a power of two, or T: few shapes compile.
    """
    most = int(masked_BT.sum(axis=1).max())
    slots = 1
    while slots < most:
        slots *= 2
    return np.argsort(~masked_BT, axis=1, kind="stable")[:, :slots].astype(np.int32)
