"""config.json to a transformers config that is known to be implemented."""

from pathlib import Path
from typing import Any

import jax

from jaxllm import files
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES
from jaxllm.names.values import are_names, problems
from jaxllm.runtime import memory, no_torch


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is in the directory, before transformers drops or renames a key."""
    file = directory / "config.json"
    if (directory / "adapter_config.json").is_file() and not file.is_file():
        about = files.read_json(directory / "adapter_config.json", dict, "an adapter's config")
        base = about.get("base_model_name_or_path")
        raise InputError(
            f"{directory} holds an adapter alone, of the base {base!r}; give the base as the "
            "model's path, and this directory as its adapter (model.adapter, or adapter=… of "
            "from_pretrained)"
        )
    if not file.is_file():
        inside = directory / "model"
        hint = f"; {inside} has one" if (inside / "config.json").is_file() else ""
        raise InputError(
            f"{directory} has no config.json; expected one that transformers wrote{hint}"
        )
    return files.read_json(file, dict, "a model's config, a JSON object")


def check_attributes(attributes: dict[str, Any], where: str) -> None:
    """Raises InputError, naming every attribute, unless the model described is implemented."""
    model_type = attributes.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{where}: model_type={model_type!r:.80}, a checkpoint of another architecture; "
            f"implemented: {', '.join(FAMILIES)}"
        )
    FAMILIES[model_type].table.attributes.check(attributes, where)


def check_config(config: Any, where: str) -> None:
    """Raises InputError unless it is a config of transformers, implemented, of sizes that fit."""
    if isinstance(config, type) or not hasattr(config, "to_diff_dict"):
        raise InputError(f"{where}: expected a config of transformers, such as BertConfig(...)")
    check_attributes(config.to_diff_dict(), where)
    has_head_size = getattr(config, "head_dim", None) is not None  # which need not fill the width
    if config.hidden_size % config.num_attention_heads and not has_head_size:
        raise InputError(
            f"{where}: hidden_size={config.hidden_size} is not divisible by "
            f"num_attention_heads={config.num_attention_heads}"
        )


def make_config(attributes: dict[str, Any], where: str, **overrides: Any) -> Any:
    """The transformers config of these attributes with `overrides` set over them.

    `where`: what messages say they are from. Labels given by an override replace those there
    are. Raises InputError for what is not implemented, unknown, or of the wrong type.
    """
    attributes = {**attributes}
    if strange := [name for name in attributes if not isinstance(name, str)]:
        raise InputError(f"{where}: found {strange[0]!r:.80}, expected the name of an attribute")
    if "model_type" not in attributes:  # configs of 2019 do not say
        attributes |= _model_type(attributes.get("architectures"))
    attributes = _merge(attributes, overrides)
    check_attributes(attributes, where)
    # transformers turns a dtype into torch's, importing torch for it; here parameters are float32.
    for name in ("dtype", "torch_dtype"):
        attributes.pop(name, None)
    config_class = _class_of(attributes["model_type"])
    _check_sizes(attributes, config_class, where)
    if names := attributes.pop("id2label", None):  # an empty one says nothing
        attributes["id2label"] = {int(i): str(name) for i, name in names.items()}
    try:
        config = config_class.from_dict(attributes)
    except Exception as error:  # of the checks of transformers, and of code that has none
        raise InputError(
            f"{where}: not a {attributes['model_type']} config: {' '.join(str(error).split())}"
        ) from error
    check_config(config, where)
    return config


def _class_of(model_type: str) -> Any:
    with no_torch.deferred():
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[model_type]  # which imports it


def _check_sizes(attributes: dict[str, Any], config_class: Any, where: str) -> None:
    """Refuses a model that all devices together could not hold.

    The estimate is from the names of the sizes, as some models take minutes to describe: a list has
    an entry for each layer or label.
    """

    def size(*names: str) -> int:
        """The first that is said, else the default of the first that there is."""
        said = (attributes.get(name) for name in names)
        defaults = (getattr(config_class, name, None) for name in names)
        return next((x for x in (*said, *defaults) if isinstance(x, int)), 1)

    width = size("hidden_size", "dim", "n_embd")
    layers = size("num_hidden_layers", "n_layers", "n_layer")
    tables = size("vocab_size") * size("embedding_size", "hidden_size", "dim", "n_embd")
    labels = size("num_labels") * width
    inner = size("intermediate_size", "hidden_dim", "n_inner")
    numbers = tables + labels + layers * (4 * width * width + 2 * width * inner)
    memory.check(
        4 * numbers // jax.device_count(),
        f"{where}: the parameters of {layers} layers with hidden_size {width}",
        "give smaller sizes, or more devices",
    )


def _merge(attributes: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`overrides` over `attributes`, whose labels go where others are given."""
    names, count = overrides.get("id2label"), overrides.get("num_labels")
    old = attributes.get("id2label")
    if names or count not in (None, len(old) if isinstance(old, dict) and old else 2):
        labels = ("num_labels", "id2label", "label2id")
        attributes = {name: x for name, x in attributes.items() if name not in labels}
    if names and not problems({"id2label": names}):
        overrides = {"label2id": {name: int(i) for i, name in names.items()}, **overrides}
    return attributes | overrides


def _model_type(architectures: Any) -> dict[str, str]:
    """{"model_type": …} of the model type whose classes `architectures` names; empty if none."""
    for model_type, family in FAMILIES.items():
        if are_names(architectures) and any(map(family.table.is_class, architectures)):
            return {"model_type": model_type}
    return {}
