"""Importing this hides torch, which is here for the other side of the comparison only.

jaxllm's memory figure would hold it.
"""

from jaxllm.runtime import no_torch

no_torch.hide()
from transformers.utils import is_torch_available  # noqa: E402

assert not is_torch_available()
