"""config.json to a transformers config that is known to be implemented."""

import json
from pathlib import Path
from typing import Any

from jaxllm import no_torch
from jaxllm.errors import InputError
from jaxllm.pretrained import FAMILIES


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is in the directory, before transformers drops or renames a key."""
    file = directory / "config.json"
    if not file.is_file():
        inside = directory / "model"
        hint = f"; {inside} has one" if (inside / "config.json").is_file() else ""
        raise InputError(
            f"{directory} has no config.json; expected one that transformers wrote{hint}"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}; download or write it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} holds a {type(config).__name__}; expected a JSON object")
    return config


def check_attributes(attributes: dict[str, Any], where: str) -> None:
    """Raises InputError, naming every attribute, unless the model described is implemented."""
    model_type = attributes.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"{where}: model_type={model_type!r}, a checkpoint of another architecture; "
            f"implemented: {', '.join(FAMILIES)}"
        )
    FAMILIES[model_type].attributes.check(attributes, where)


def make_config(attributes: dict[str, Any], where: str, **overrides: Any) -> Any:
    """The transformers config of these attributes with `overrides` set over them.

    `where`: what messages say they are from. Labels given by an override replace those there
    are. Raises InputError for what is not implemented, unknown, or of the wrong type.
    """
    from huggingface_hub.errors import StrictDataclassError

    with no_torch.deferred():
        from transformers import CONFIG_MAPPING

    attributes = {**attributes}
    if "model_type" not in attributes:  # configs of 2019 do not say
        attributes |= _model_type(attributes.get("architectures") or [])
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
        with no_torch.deferred():  # the class is imported here
            config = CONFIG_MAPPING[attributes["model_type"]].from_dict(attributes)
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not a {attributes['model_type']} config: {' '.join(str(error).split())}"
        ) from error
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{where}: hidden_size={config.hidden_size} is not divisible by "
            f"num_attention_heads={config.num_attention_heads}"
        )
    return config


def _model_type(architectures: list[str]) -> dict[str, str]:
    """{"model_type": …} of the model type whose classes `architectures` names; empty if none."""
    for model_type, family in FAMILIES.items():
        if any(family.is_class(name) for name in architectures):
            return {"model_type": model_type}
    return {}
