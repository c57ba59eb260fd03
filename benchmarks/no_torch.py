"""Importing this hides torch from transformers and datasets, as where it is not installed.

Torch is installed for the other side of the comparison only; transformers would import it here
too, and jaxllm's memory figure would hold it.
"""

import os
import sys

os.environ["USE_TORCH"] = "0"  # for datasets
sys.modules["torch"] = None  # type: ignore[assignment]
from transformers.utils import is_torch_available  # noqa: E402  (it remembers its first answer)

assert not is_torch_available()
del sys.modules["torch"]
