"""A key with another name now: run.tensorboard, true or false, is run.trackers, a list."""

import json
import logging
from typing import Any

from jaxllm.errors import InputError

logger = logging.getLogger("jaxllm")

OLD, NEW = "run.tensorboard", "run.trackers"


def trackers(where: str, tensorboard: Any) -> list[str]:
    """The value of run.trackers that a value of run.tensorboard stands for."""
    if not isinstance(tensorboard, bool):
        raise InputError(f"{where}: found {tensorboard!r}, expected true or false")
    return ["tensorboard"] if tensorboard else []


def options(argv: list[str], renamed: list[str]) -> list[str]:
    """`argv` with --run.trackers for --run.tensorboard; `renamed` gets the old option."""
    result = list(argv)
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option == f"--{OLD}":
            renamed.append(option)
            at = i if equals else min(i + 1, len(argv) - 1)
            given = value if equals else argv[at]
            known = {"true": True, "false": False}
            names = json.dumps(trackers(option, known.get(given.lower(), given)))
            result[i] = f"--{NEW}"
            result[at] = f"--{NEW}={names}" if equals else names
    return result


def tell(renamed: list[str]) -> None:
    """Says once what the key in the first of these places is now."""
    if renamed:
        logger.warning(
            "%s is now called %s, a list: [tensorboard], or [] for none", renamed[0], NEW
        )
