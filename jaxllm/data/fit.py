"""Whether a tokenizer, rows and batches fit a model: checked before anything is computed."""

import logging
from typing import Any

from jax.sharding import Mesh

from jaxllm import models
from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.errors import InputError
from jaxllm.nn.sharding import batch_shards
from jaxllm.runtime import memory

logger = logging.getLogger("jaxllm")

_ROUNDED_UP = 128  # sizes of vocabularies are rounded up to a multiple of so many at most


def check_tokenizer(tokenizer: Any, model_config: Any) -> None:
    """Refuses ids outside of the word embedding, which XLA would answer with wrong numbers.

    Warns where the table has more rows than rounding up explains: another model's tokenizer?
    """
    size = vocabulary_size(tokenizer)
    if size > model_config.vocab_size:
        raise InputError(
            f"the tokenizer has {size} tokens, but the model {model_config.vocab_size} "
            "(vocab_size); give the tokenizer that belongs to it"
        )
    if size <= model_config.vocab_size - _ROUNDED_UP:
        logger.warning(
            "the model has %d tokens (vocab_size), the tokenizer %d; the others are never seen. If "
            "the weights are pretrained, check that this is the tokenizer that belongs to them",
            *(model_config.vocab_size, size),
        )


def check_fit(
    model_config: Any, tokenizer: Any, max_length: int, *, pair: bool, key: str = "data.max_length"
) -> None:
    """Refuses a tokenizer, and rows of `max_length` tokens, that the model has no place for.

    Whoever loads a model calls this, to train, to evaluate and to predict: XLA answers an id
    outside of its table with NaN or with another row.

    pair: whether a row may hold two texts. key: what `max_length` is called in a message.
    """
    check_tokenizer(tokenizer, model_config)
    longest = models.max_tokens(model_config)
    if max_length > longest:
        raise InputError(
            f"{key}: found {max_length}, expected at most the model's {longest} positions "
            "(max_position_embeddings)"
        )
    texts = ("a", "a") if pair else ("a",)
    types = max(tokenizer(*texts, return_token_type_ids=True)["token_type_ids"], default=0) + 1
    known = getattr(model_config, "type_vocab_size", 0)
    if types > known > 1:  # where there is one type the model takes all tokens to be of it
        raise InputError(
            f"the tokenizer tells {types} types of tokens apart, but the model {known} "
            "(type_vocab_size); give the tokenizer that belongs to it"
        )


def check_batch(
    key: str, rows: int, length: int, model_config: Any, mesh: Mesh, *, parts: int = 1
) -> None:
    """Refuses a batch that no device could hold its part of, before it is made.

    Counted are three int32 arrays of ids, and one hidden state, in float32 or two in bfloat16.

    key: what `rows` is called in a message. length: tokens of a row, at least. parts: of the batch,
    which are computed one after the other.
    """
    tokens = rows * length // batch_shards(mesh)
    memory.check(
        tokens * 12 + tokens // parts * 4 * model_config.hidden_size,
        f"{key}: a batch of {rows} rows",
        "choose a smaller one",
    )
