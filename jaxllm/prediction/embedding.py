"""Answers rows of text with their vectors: prediction of a sentence-embedding model."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.nn.pooling import Pooling
from jaxllm.prediction.batched import BatchSizes
from jaxllm.prediction.classification import short
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.texts import TextPredictor
from jaxllm.pretrained import sentence_transformers
from jaxllm.pretrained.sentence_transformers import Settings


def embedder(model: SavedModel, batch_sizes: BatchSizes) -> TextPredictor:
    """`embedding`, a list of numbers; made as `vectors` says."""
    predictor, _ = vectors(model, batch_sizes)
    return replace(predictor, tell=lambda e_D, _: {"embedding": [short(x) for x in e_D]})


def vectors(
    model: SavedModel, batch_sizes: BatchSizes, *, normalize: bool | None = None
) -> tuple[TextPredictor, int]:
    """(what gives `embedding`, float32 [D], out of the last hidden states of any model, D).

    Made as sentence-transformers' files beside the model say, without such files by the mean,
    scaled to length 1. `normalize`: whether it is scaled, whatever the files say.
    """
    found = sentence_transformers.read(model.directory)
    pooling, settings = found or (Pooling(), Settings())
    width = sentence_transformers.check_widths(model.directory, pooling, model.config.hidden_size)
    tokenizer = settings.prepared(model.tokenizer)
    pooling = replace(pooling, skip=settings.skipped(tokenizer))
    if normalize is not None:
        pooling = replace(pooling, normalize=normalize)

    def embed(module: Any, rows: dict[str, jax.Array]) -> jax.Array:
        ids_BT, others = (
            rows["input_ids"],
            {name: rows[name] for name in rows if name != "input_ids"},
        )
        firsts_B1 = jnp.zeros((len(ids_BT), 1), jnp.int32)
        hidden_BTD = module.stack.encode(ids_BT, **others).last_hidden_state
        return pooling(hidden_BTD, rows["segment_ids"], firsts_B1)[:, 0]

    form = replace(model.form, task="sentence-embedding", text_pair=None)
    model = replace(model, tokenizer=tokenizer, form=form)
    predictor = TextPredictor.of(
        model,
        batch_sizes,
        model.compiled(embed),
        lambda e_D, _: {"embedding": e_D},
        prompt=settings.prompt,
    )
    return predictor, width
