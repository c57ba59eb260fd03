"""What a model's files say of how it generates."""

from pathlib import Path
from typing import Any

from jaxllm.files import read_json
from jaxllm.names.attributes import GENERATION
from jaxllm.pretrained.saving import GENERATION_FILE

_SETTINGS = GENERATION | {"bos_token_id", "eos_token_id", "pad_token_id"}


def generation_defaults(directory: Path | None, config: Any) -> tuple[dict[str, Any], str]:
    """(settings by transformers' names, the file that they are from).

    generation_config.json is read alone where it exists; otherwise config.json as it lies there:
    what a config class of transformers adds by default does not count. A model without files has
    the attributes of `config`, all of them.
    """
    if directory is None:
        return config.to_dict(), "the model's config"
    file = directory / GENERATION_FILE
    if file.is_file():
        expected = "what transformers' GenerationConfig.save_pretrained writes"
        return read_json(file, dict, expected), str(file)
    file = directory / "config.json"
    return read_json(file, dict, "a model's config, a JSON object"), str(file)


def settings_to_keep(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The content of a generation_config.json that says what `generation_defaults` gave."""
    if where.endswith(GENERATION_FILE):
        return settings
    return {name: x for name, x in settings.items() if name in _SETTINGS and x is not None}
