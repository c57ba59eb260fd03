"""Answers rows of text with their vectors: prediction of a sentence-embedding model."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models import Apply
from jaxllm.nn.pooling import Pooling
from jaxllm.prediction.batched import BatchSizes
from jaxllm.prediction.classification import short
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.texts import TextPredictor
from jaxllm.pretrained import sentence_transformers
from jaxllm.pretrained.sentence_transformers import Settings


def embedder(model: SavedModel, batch_sizes: BatchSizes) -> TextPredictor:
    """`embedding`, a list of numbers; made as sentence-transformers' files beside the model say,
    without such files by the mean, scaled to length 1.
    """
    found = sentence_transformers.read(model.directory)
    pooling, settings = found or (Pooling(), Settings())
    sentence_transformers.check_widths(model.directory, pooling, model.config.hidden_size)
    tokenizer = settings.prepared(model.tokenizer)
    pooling = replace(pooling, skip=settings.skipped(tokenizer))

    def embed(apply: Apply, rows: dict[str, jax.Array]) -> jax.Array:
        firsts_B1 = jnp.zeros((len(rows["input_ids"]), 1), jnp.int32)
        return pooling(apply(**rows).last_hidden_state, rows["segment_ids"], firsts_B1)[:, 0]

    def answer(e_D: np.ndarray, _: str) -> dict[str, Any]:
        return {"embedding": [short(x) for x in e_D]}

    model = replace(model, tokenizer=tokenizer)
    return TextPredictor.of(
        model, batch_sizes, model.compiled(embed), answer, prompt=settings.prompt
    )
