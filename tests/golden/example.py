"""The model sizes and the batch that every golden in this directory was recorded with."""

import numpy as np

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
# Of the families that came later: a third of the bytes.
SMALL = {
    **CONFIG,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def batch() -> dict[str, np.ndarray]:
    """Three rows of 12 tokens: one with padding, all of two sentences."""
    rng = np.random.default_rng(0)
    input_ids = rng.integers(1, CONFIG["vocab_size"], (3, 12))
    attention_mask = np.ones_like(input_ids)
    attention_mask[1, 7:] = 0
    token_type_ids = np.zeros_like(input_ids)
    token_type_ids[:, 6:] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
    }
