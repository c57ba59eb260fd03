"""Hides PyTorch from libraries that import it wherever it is installed.

transformers is one, which takes seconds and memory, and nothing in jaxllm asks it for a model of
PyTorch. `import torch` itself works as before: a pickle of weights needs it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
