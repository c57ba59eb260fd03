"""The two forms of a check: a message names the key, what was found and what was expected."""

import math
from typing import Any

from jaxllm.errors import InputError


def require(key: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise InputError(f"{key}: found {value!r}, expected {expected}")


def at_least(least: int, values: dict[str, Any]) -> None:
    for key, value in values.items():
        require(key, value, least <= value < math.inf, f"at least {least}")
