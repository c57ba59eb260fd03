"""Keys with another name now: the old ones still load, and say what they are called."""

import json
import logging
import os
import re
from typing import Any

from jaxllm.errors import InputError

logger = logging.getLogger("jaxllm")

TENSORBOARD = "run.tensorboard"  # true or false, where run.trackers is a list
RENAMED = {
    TENSORBOARD: "run.trackers",
    "data.mask_unit": "masking.unit",
    "data.mask_rate": "masking.rate",
    "data.mask_slots": "masking.slots",
    "data.words": "masking.words",
    "data.text_negative": "contrastive.negative",
    "data.score": "contrastive.score",
    "data.positive_from": "contrastive.positive_from",
    "train.temperature": "contrastive.temperature",
}

# What JAX, Slurm and Open MPI call the number of a process.
_RANKS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_OPTION = re.compile(r"--(\w+\.\w+)(.*)", re.DOTALL)


def translated(where: str, key: str, value: Any) -> Any:
    """The value that the new key has where the old `key` has `value`."""
    if key != TENSORBOARD:
        return value
    if not isinstance(value, bool):
        raise InputError(f"{where}: found {value!r}, expected true or false")
    return ["tensorboard"] if value else []


def options(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """(`argv` with the new keys in place of the old ones, {old key: its option}).

    Raises:
        InputError: an old key beside its new one.
    """
    result = list(argv)
    found: dict[str, str] = {}
    given = [option and option[1] for option in map(_OPTION.match, argv)]
    for i, key in enumerate(given):
        if key is None or key not in RENAMED:
            continue
        new, rest = RENAMED[key], argv[i][len(f"--{key}") :]
        if new in given:
            raise InputError(f"--{new} is there twice, once as --{key}; remove one")
        found[key] = f"--{key}"
        result[i] = f"--{new}{rest}"
        if key == TENSORBOARD:
            at = i if rest else min(i + 1, len(argv) - 1)
            text = rest.removeprefix("=") if rest else argv[at]
            value = {"true": True, "false": False}.get(text.lower(), text)
            names = json.dumps(translated(f"--{key}", key, value))
            result[i] = f"--{new}"
            result[at] = f"--{new}={names}" if rest else names
    return result, found


def tell(renamed: dict[str, str]) -> None:
    """Says of each old key, {old key: where it is}, what it is called now.

    Of the processes that are started together only the first says it, as far as the environment
    tells which is the first: JAX has not started yet.
    """
    if any(os.environ.get(name, "0") != "0" for name in _RANKS):
        return
    for key, where in renamed.items():
        shape = ", a list: [tensorboard], or [] for none" if key == TENSORBOARD else ""
        logger.warning("%s is now called %s%s", where, RENAMED[key], shape)
