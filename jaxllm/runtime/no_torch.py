"""Keeps PyTorch from being imported by libraries that import it wherever it is installed.

transformers is one, which takes seconds and memory, and nothing in jaxllm asks it for a model of
PyTorch. `import torch` itself works as before: a pickle of weights needs it.

A command hides PyTorch: the process is its own. In a program, which may ask transformers for models
of PyTorch later, transformers must find that it is installed; only its import is put off.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def hidden() -> Iterator[None]:
    """Inside, PyTorch is not installed, unless somebody has imported it."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def hide() -> None:
    """For transformers and datasets, for the rest of this process; imports transformers."""
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    os.environ.setdefault("USE_TORCH", "0")  # for datasets
    advice = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"  # it says that without PyTorch there are no models
    try:
        with hidden():
            from transformers.utils import is_torch_available

            is_torch_available()  # it remembers its first answer
    finally:
        del os.environ[_ADVICE]
        if advice is not None:
            os.environ[_ADVICE] = advice


class _Later(ModuleType):
    """Stands for PyTorch in modules that have imported it, until one asks it for something."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("torch") is self:
            del sys.modules["torch"]
        return getattr(importlib.import_module("torch"), name)


@contextmanager
def deferred() -> Iterator[None]:
    """What is imported inside gets PyTorch when it first uses it, which may be never."""
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if spec is None:  # imported, hidden, or not installed
        yield
        return
    later = _Later("torch")
    later.__spec__ = spec
    sys.modules["torch"] = later
    try:
        yield
    finally:
        if sys.modules.get("torch") is later:
            del sys.modules["torch"]
