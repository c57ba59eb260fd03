"""GPT-2 (Radford et al., 2019), equal in numbers to transformers' PyTorch classes.

`config` is a transformers GPT2Config.
"""

from typing import Any

from jaxllm.models.decoder import DecoderSpec, decoder_family
from jaxllm.models.decoder_heads import HEADS
from jaxllm.models.family import POSITIONS
from jaxllm.names.gpt2 import GPT2


def spec(config: Any) -> DecoderSpec:
    D, N, L = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    return DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=N,
        num_key_value_heads=N,
        head_size=D // N,
        intermediate_size=config.n_inner or 4 * D,
        max_position_embeddings=config.max_position_embeddings,
        hidden_act=config.activation_function,
        norm_eps=config.layer_norm_epsilon,
        initializer_range=config.initializer_range,
        output_stddev=config.initializer_range / (2 * L) ** 0.5,
        is_tied=config.tie_word_embeddings,
        num_labels=config.num_labels,
        pad_token_id=config.pad_token_id,
        classifier_dropout=_classifier_dropout(config),
        embedding_dropout=config.embd_pdrop,
        attention_dropout=config.attn_pdrop,
        hidden_dropout=config.resid_pdrop,
    )


def _classifier_dropout(config: Any) -> float:
    rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
    return next((rate for rate in rates if rate is not None), 0.1)


FAMILY = decoder_family(spec, HEADS, GPT2, ids=POSITIONS)
