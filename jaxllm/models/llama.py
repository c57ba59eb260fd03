"""The Llama shape (Touvron et al., 2023): Llama, Mistral, Qwen2, Qwen3, and what is built as they.

RMSNorm, rotary positions, SwiGLU, grouped heads of keys and values (Ainslie et al., 2023). Equal in
numbers to transformers' PyTorch classes. `config` is a transformers config of the model type.
"""

import math
from dataclasses import replace
from typing import Any

from jaxllm.models.decoder import DecoderSpec, decoder_family
from jaxllm.models.decoder_heads import HEADS, TokenScores
from jaxllm.names import llama as names
from jaxllm.nn.rotary import Rope


def spec(config: Any) -> DecoderSpec:
    """The numbers of a config that has biases where Llama's says so, and no window."""
    N = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // N
    bias = getattr(config, "attention_bias", False)
    dropout = getattr(config, "classifier_dropout", None)
    return DecoderSpec(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=N,
        num_key_value_heads=config.num_key_value_heads,
        head_size=head_size,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_act=config.hidden_act,
        norm_eps=config.rms_norm_eps,
        initializer_range=config.initializer_range,
        output_stddev=config.initializer_range,
        is_tied=config.tie_word_embeddings,
        num_labels=config.num_labels,
        pad_token_id=config.pad_token_id,
        classifier_dropout=0.1 if dropout is None else dropout,
        rope=rope(config, head_size),
        is_gated=True,
        rms=True,
        bias=bias,
        output_bias=bias,
        mlp_bias=getattr(config, "mlp_bias", False),
        attention_dropout=config.attention_dropout,
        **_windows(config),
    )


def _windows(config: Any) -> dict[str, Any]:
    """Mistral's layers all have the window; those of Qwen say which do."""
    window, L = getattr(config, "sliding_window", None), config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * L
    is_global = tuple(kind == "full_attention" for kind in kinds)
    if window is None or all(is_global):
        return {}
    return {"window": window, "is_global": is_global}


def rope(config: Any, head_size: int) -> Rope:
    """The rotary positions that config.rope_parameters describe."""
    given = config.rope_parameters
    kind = given.get("rope_type", "default")
    longest = config.max_position_embeddings
    if kind != "dynamic":
        longest = given.get("original_max_position_embeddings") or longest
    factor = given.get("factor")
    if factor is None:  # of default, where it says nothing, and of yarn and longrope
        factor = config.max_position_embeddings / longest
    of_kind: dict[str, Any] = {
        "llama3": lambda: {"low": given["low_freq_factor"], "high": given["high_freq_factor"]},
        "yarn": lambda: {
            "low": given.get("beta_slow") or 1,
            "high": given.get("beta_fast") or 32,
            "truncate": given.get("truncate", True),
            "scale": _yarn_scale(given, factor),
        },
        "longrope": lambda: {
            "short_factors": tuple(given["short_factor"]),
            "long_factors": tuple(given["long_factor"]),
            "scale": _longrope_scale(given, factor, longest),
        },
    }.get(kind, dict)()
    return Rope(head_size, given["rope_theta"], kind, factor, longest, **of_kind)


def _yarn_scale(given: dict[str, Any], factor: float) -> float:
    if given.get("attention_factor") is not None:
        return given["attention_factor"]

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, all_dims = given.get("mscale"), given.get("mscale_all_dim")
    return scale(one) / scale(all_dims) if one and all_dims else scale(1)


def _longrope_scale(given: dict[str, Any], factor: float, longest: int) -> float:
    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(longest))


def _qwen2(config: Any) -> DecoderSpec:
    return replace(spec(config), bias=True)


def _qwen3(config: Any) -> DecoderSpec:
    return replace(spec(config), qk_norm=True)


_HEADS = HEADS | {"token-classification": TokenScores}
LLAMA = decoder_family(spec, _HEADS, names.LLAMA, ids={})
MISTRAL = decoder_family(spec, _HEADS, names.MISTRAL, ids={})
QWEN2 = decoder_family(_qwen2, _HEADS, names.QWEN2, ids={})
QWEN3 = decoder_family(_qwen3, _HEADS, names.QWEN3, ids={})
