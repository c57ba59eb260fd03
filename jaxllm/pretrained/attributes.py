"""config.json: what a model is.

An attribute that would change the numbers and is not implemented is refused by name.
"""

import json
from pathlib import Path
from typing import Any

from jaxllm.errors import InputError
from jaxllm.layers import ACTIVATIONS
from jaxllm.pretrained import modernbert

# What the modules read, or what is checked below.
IMPLEMENTED = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "classifier_dropout",
    "output_hidden_states",
    "output_attentions",
}
# Attributes with one value that is implemented.
REQUIRED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "directionality": "bidi",
    "pooler_type": "first_token_transform",
}
# Bookkeeping, and names that transformers' BERT never read.
HARMLESS = {
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "mask_token_id",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_past",
    "pad_token_id",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "prefix",
    "problem_type",
    "return_dict",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
}
# How to generate text, which configs of transformers 2 and 3 spell out for every model; here
# nothing generates.
GENERATION = {
    "bad_words_ids",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "eos_token_ids",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "repetition_penalty",
    "return_dict_in_generate",
    "temperature",
    "top_k",
    "top_p",
}
KNOWN = {
    "bert": IMPLEMENTED | HARMLESS | GENERATION,
    "modernbert": modernbert.IMPLEMENTED | modernbert.HARMLESS | HARMLESS | GENERATION,
}
VALUES = {"bert": REQUIRED, "modernbert": modernbert.REQUIRED}
ACTIVATION_NAMES = ("hidden_act", *modernbert.ACTIVATIONS)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is in the directory, before transformers drops or renames a key."""
    file = directory / "config.json"
    if not file.is_file():
        raise InputError(f"{directory} has no config.json; expected one that transformers wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}; download or write it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} holds a {type(config).__name__}; expected a JSON object")
    return config


def check_attributes(attributes: dict[str, Any], where: str) -> None:
    """Raises InputError, naming every attribute, unless the model described is implemented."""
    problems = []
    model_type = attributes.get("model_type")
    if model_type not in KNOWN:
        raise InputError(
            f"{where}: model_type={model_type!r}, a checkpoint of another architecture; "
            f"implemented: {', '.join(KNOWN)}"
        )
    known, required = KNOWN[model_type], VALUES[model_type]
    for name, value in attributes.items():
        if name in required:
            if value is not None and value != required[name]:
                problems.append(f"{name}={value!r} (implemented: {required[name]!r})")
        elif not (name in known or name.startswith("_") or value is None):
            problems.append(f"{name}={value!r} (unknown)")
        elif name in ACTIVATION_NAMES and value not in ACTIVATIONS:
            problems.append(f"{name}={value!r} (implemented: {', '.join(ACTIVATIONS)})")
    if model_type == "modernbert":
        problems += modernbert.problems(attributes)
    if problems:
        raise InputError(
            f"{where}: config attributes that are not implemented: {'; '.join(problems)}; without "
            "them the numbers could be others. Use another checkpoint, or remove an attribute that "
            "you know to be without effect"
        )


def make_config(attributes: dict[str, Any], where: str, **overrides: Any) -> Any:
    """The transformers config of these attributes with `overrides` set over them.

    `where`: what messages say they are from.    Labels given by an override replace those there
    are. Raises InputError for what is not implemented, unknown, or of the wrong type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    attributes = {**attributes}
    if "model_type" not in attributes and any(
        str(name).startswith("Bert") for name in attributes.get("architectures") or ()
    ):
        attributes["model_type"] = "bert"  # configs of 2019 do not say
    if "num_labels" in overrides and overrides["num_labels"] != len(
        attributes.get("id2label") or (0, 1)
    ):
        attributes.pop("id2label", None)
        attributes.pop("label2id", None)
    if "id2label" in overrides:
        names = overrides["id2label"]
        overrides = {"label2id": {name: int(i) for i, name in names.items()}, **overrides}
    attributes |= overrides
    check_attributes(attributes, where)
    # transformers turns a dtype into torch's, importing torch for it; here parameters are float32.
    for name in ("dtype", "torch_dtype"):
        attributes.pop(name, None)
    try:
        config = CONFIG_MAPPING[attributes["model_type"]].from_dict(attributes)
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not a config of {attributes['model_type']}: {' '.join(str(error).split())}"
        ) from error
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{where}: hidden_size={config.hidden_size} is not divisible by "
            f"num_attention_heads={config.num_attention_heads}"
        )
    return config
