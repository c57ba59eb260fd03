"""Where a checkpoint is: a directory, a repository of the Hub, a folder of an installed package."""

import importlib.util
import os
import re
from pathlib import Path

from jaxllm import files
from jaxllm.errors import InputError
from jaxllm.pretrained.formats import find_weights, weight_files

# Fetched besides the weights.
SMALL_FILES = [
    "config.json",
    "tokenizer*",
    "vocab*",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "*_Pooling/config.json",
    "*_Normalize/config.json",
    "*_Dense/*",
    "adapter_config.json",
    "adapter_model.*",
]
# What to fetch, the first that is there: a repository often holds the same weights several times.
WEIGHT_PATTERNS = [
    ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"],
    ["flax_model*.msgpack", "flax_model.msgpack.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
OFFLINE = (
    "Without the Hub: give a local directory, package:NAME/folder for one inside an installed "
    "package, or set HF_HOME to a cache in which it already is"
)


def resolve(path: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """The local directory of a checkpoint or tokenizer.

    `path`: a directory; `package:NAME/sub/dir`, inside the package NAME, which is found but not
    imported; or a Hub id, of which only the files needed are fetched, or taken from the cache;
    `weights=False` leaves the weights there. Raises InputError if it is nowhere, or empty; what is
    read from it says what it misses.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        found = "an empty text" if path == "" else type(path).__name__
        raise InputError(
            f"found {found} as the place of a checkpoint, expected a directory, a Hub id or "
            "package:NAME/folder"
        )
    text = str(path)
    directory = Path(path).expanduser()
    if text.startswith("package:"):
        directory = _in_package(text)
    elif not os.path.isdir(directory):  # pathlib raises where a name is too long
        if os.path.exists(directory):
            raise InputError(f"{text} is a file; give the directory it is in")
        if not HUB_ID.fullmatch(text):
            raise InputError(f"{text} does not exist; expected a directory. {OFFLINE}")
        directory = _from_hub(text, weights=weights)
    with files.reading(directory, "a directory that may be read"):
        is_empty = not any(directory.iterdir())
    if is_empty:
        raise InputError(f"{text} is empty; looked for config.json and {weight_files()}")
    return directory


def _in_package(text: str) -> Path:
    name, *folders = text.removeprefix("package:").split("/")
    if not name.isidentifier():
        raise InputError(f"{text}: {name!r} is no package name; expected package:NAME/folder")
    spec = importlib.util.find_spec(name)  # of a top-level package: imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{text}: no package {name} is installed; `pip install {name.replace('_', '-')}`"
        )
    for location in spec.submodule_search_locations:
        directory = Path(location, *folders)
        if directory.is_dir():
            return directory
    raise InputError(f"{text}: package {name} is installed, but has no folder {'/'.join(folders)}")


def _from_hub(repository: str, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repository, allow_patterns=patterns))

    try:
        directory = fetch(SMALL_FILES)
        for patterns in WEIGHT_PATTERNS if weights else ():
            if find_weights(directory) is not None:
                break
            directory = fetch(patterns)
    except GatedRepoError as error:
        raise InputError(
            f"{repository} on the Hugging Face Hub is gated; accept its terms there and "
            f"`hf auth login`. {OFFLINE}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{repository} is neither a directory nor a repository of the Hugging Face Hub; "
            f"check the spelling. {OFFLINE}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{repository} is not a directory, not in the Hugging Face cache, and the Hub cannot "
            f"be reached. {OFFLINE}"
        ) from error
    except Exception as error:  # of whichever HTTP library the client uses in this version
        raise InputError(
            f"{repository} could not be fetched from the Hugging Face Hub: {error}. {OFFLINE}"
        ) from error
    return directory
