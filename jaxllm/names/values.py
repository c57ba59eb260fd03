"""What attributes of a config.json may be: kinds and ranges by name, one table for all families.

A value out of range gives a model all the same, with wrong answers: a dropout rate of 1 divides by
zero, an epsilon that is no number makes each output one, and of two labels with one name the second
takes the score of the first.
"""

import sys
from collections.abc import Callable
from typing import Any

Kind = tuple[Callable[[Any], bool], str]  # (whether a value fits, what is expected)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite one that a float can hold."""
    return (is_whole(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def is_above_zero(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_size(value: Any) -> bool:
    return is_whole(value) and value >= 1


_SIZE: Kind = (_is_size, "a whole number of at least 1")
_RATE: Kind = (lambda x: is_number(x) and 0 <= x < 1, "a number of at least 0 and below 1")
_ABOVE_ZERO: Kind = (is_above_zero, "a number above 0")
_NOT_NEGATIVE: Kind = (lambda x: is_number(x) and x >= 0, "a number of at least 0")
_FLAG: Kind = (lambda x: isinstance(x, bool), "true or false")
_TEXT: Kind = (lambda x: isinstance(x, str), "a string")
_NAMES: Kind = (are_names, "a list of strings")
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

KINDS: dict[str, Kind] = {
    **dict.fromkeys(("vocab_size", "type_vocab_size", "max_position_embeddings"), _SIZE),
    **dict.fromkeys(("hidden_size", "dim", "embedding_size"), _SIZE),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"), _SIZE),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "num_labels"), _SIZE),
    **dict.fromkeys(("local_attention", "global_attn_every_n_layers"), _SIZE),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout"), _RATE),
    **dict.fromkeys(("classifier_dropout", "summary_last_dropout", "attention_dropout"), _RATE),
    **dict.fromkeys(("qa_dropout", "seq_classif_dropout", "embedding_dropout"), _RATE),
    **dict.fromkeys(("n_positions", "n_embd", "n_layer", "n_head", "n_inner"), _SIZE),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window"), _SIZE),
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "hidden_dropout"), _RATE),
    **dict.fromkeys(("layer_norm_epsilon", "rms_norm_eps", "rope_theta"), _ABOVE_ZERO),
    **dict.fromkeys(("is_decoder", "attention_bias", "mlp_bias", "use_sliding_window"), _FLAG),
    "max_window_layers": (lambda x: is_whole(x) and x >= 0, "a whole number of at least 0"),
    "activation_function": _TEXT,
    "mlp_dropout": _RATE,
    **dict.fromkeys(("layer_norm_eps", "norm_eps", "initializer_cutoff_factor"), _ABOVE_ZERO),
    **dict.fromkeys(("global_rope_theta", "local_rope_theta"), _ABOVE_ZERO),
    "initializer_range": _NOT_NEGATIVE,
    **dict.fromkeys(("output_attentions", "output_hidden_states"), _FLAG),
    **dict.fromkeys(("model_type", "hidden_act", "activation", "summary_activation"), _TEXT),
    **dict.fromkeys(("hidden_activation", "classifier_activation"), _TEXT),
    **dict.fromkeys(("architectures", "layer_types"), _NAMES),
    "problem_type": (
        lambda x: isinstance(x, str) and x in _PROBLEM_TYPES,
        f"one of {', '.join(_PROBLEM_TYPES)}",
    ),
    **dict.fromkeys(
        ("rope_parameters", "rope_scaling"), (lambda x: isinstance(x, dict), "an object")
    ),
}


def problems(attributes: dict[str, Any]) -> list[str]:
    """What is wrong with the values of these attributes; null is a value that is not given."""
    found = []
    for name, value in attributes.items():
        if value is not None and name in KINDS:
            fits, expected = KINDS[name]
            if not fits(value):
                found.append(f"{name}={value!r:.80} (expected {expected})")
    if attributes.get("id2label"):  # an empty one says nothing
        found += _label_problems(attributes["id2label"], attributes.get("num_labels"))
    return found


def _label_problems(names: Any, count: Any) -> list[str]:
    shown = f"id2label={names!r:.80}"
    try:
        by_id = {int(i): name for i, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        return [f"{shown} (expected names by id, from 0)"]
    if sorted(by_id) != list(range(len(names))):
        return [f"{shown} (expected the ids 0 to {len(names) - 1}, each once)"]
    if not all(isinstance(name, str) or is_whole(name) for name in by_id.values()):
        return [f"{shown} (expected strings as names)"]
    texts = list(map(str, by_id.values()))
    twice = sorted({name for name in texts if texts.count(name) > 1})
    if twice:
        return [f"{shown} (expected another name for each id; found more than once: {twice[0]!r})"]
    if is_whole(count) and count != len(by_id):
        return [f"num_labels={count} (expected {len(by_id)}, as id2label has names for so many)"]
    return []
