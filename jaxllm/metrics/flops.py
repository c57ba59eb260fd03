"""FLOPs of a model, counted as its mathematics needs them, whoever computes it how."""

from statistics import fmean
from typing import Any

import numpy as np

from jaxllm import models
from jaxllm.trees import flatten


def training_flops_per_token(
    abstract: Any, config: Any, head: str, lengths: np.ndarray, *, masked: float = 0.0
) -> float:
    """FLOPs of a training step, forward and backward, for one token that is not padding.

        6 · Σ size · share  over the kernels  +  12 · Σ width · T_eff  over the layers

    The first term is the matrix products: of the blocks and embeddings for each token, of the head
    for the tokens that it is about. The second is attention's scores and values. A third of it all
    is the forward pass (Chowdhery et al., 2022, appendix B). What is computed again, as
    `model.remat` says, is not counted.

    Args:
        abstract: the model's parameters, or their shapes.
        config: its transformers config.
        head: see `models.FAMILIES`.
        lengths: [n], tokens of each text; a token attends to those of its own.
        masked: the share of tokens that a masked language model is asked for.
    """
    texts = len(lengths) / float(np.sum(lengths))
    attended = effective_length(lengths)
    seen = fmean(min(attended, window) for window in models.windows(config))
    products = attention = 0.0
    for path, x in flatten(abstract).items():
        parts = path.split("/")
        if parts[-1] == "kernel":
            products += np.prod(x.shape) * _share(parts, head, texts, masked)
        if path.endswith("attention/query/kernel"):
            layers, _, heads, size = x.shape
            attention += layers * heads * size * seen
        if path == "embeddings/word/embedding":  # the decoder, where it is tied to it
            if head in _OVER_VOCABULARY:
                products += np.prod(x.shape) * masked
            elif head == "causal-lm" and "lm_head" not in abstract:
                products += np.prod(x.shape)
    return float(6 * products + 12 * attention)


_OVER_VOCABULARY = ("masked-lm", "pretraining", "joint-pretraining")
_FOR_EACH_TOKEN = (
    "token-classification",
    "question-answering",
    "joint-pretraining",
    "causal-lm",
)


def _share(parts: list[str], head: str, texts: float, masked: float) -> float:
    """The share of tokens that a kernel is multiplied with, by the parts of its path."""
    if {"blocks", "embeddings"} & set(parts):
        return 1.0
    if "mlm" in parts or head == "masked-lm":
        return masked
    if head == "base":  # its pooler has no part in the loss
        return 0.0
    return 1.0 if head in _FOR_EACH_TOKEN else texts


def effective_length(lengths: np.ndarray) -> float:
    """Mean length of texts weighted by tokens, sum(n²) / sum(n): the keys a token attends to."""
    tokens = np.asarray(lengths, np.float64)
    return float(np.sum(tokens**2) / np.sum(tokens)) if len(tokens) else 0.0
