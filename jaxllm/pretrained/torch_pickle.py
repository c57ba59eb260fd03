"""PyTorch's pickles of weights. A pickle may hold code: it is never run, and told."""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.errors import InputError
from jaxllm.pretrained.tensors import Tensor, damaged

EXPECTED = "a PyTorch state dict: tensors by name, and nothing else"
# What pickles of tensors name; torch.load's weights_only knows more, and decides.
_HARMLESS = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)|(builtins|__builtin__) (set|bytearray)"
    r"|torch (\w+Storage|Size|Tensor|device|b?float\w*|u?int\w*|bool)|torch\.storage \w+"
    r"|torch\.(_utils|_tensor) _rebuild\w+|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout"
)
_MAX_PICKLE = 100_000_000  # bytes looked at for the names


def read_torch(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name.

    Raises:
        InputError: torch is not installed, the file is damaged, holds code, or more than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{file} is a PyTorch pickle and torch is not installed; `pip install torch`, or run, "
            f"where it is, `jaxllm convert {file.parent} DST --weights safetensors`"
        ) from error

    try:
        with warnings.catch_warnings(action="ignore"):  # of old kinds of pickles
            # Files older than PyTorch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except Exception as error:  # torch.load raises whatever comes: KeyError, struct.error, …
        names = sorted(set(_foreign(file)))
        if not names:
            raise damaged(file, EXPECTED) from error
        raise InputError(
            f"{file} is refused because it holds code: reading this pickle would call or make "
            f"{', '.join(names[:5])}; expected {EXPECTED}. Look for the model as safetensors, or, "
            "if you trust the file, save model.state_dict() of what is in it"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{file} holds a {type(state).__name__}; expected {EXPECTED}")
    return {name: _tensor(file, name, value) for name, value in state.items()}


def _tensor(file: Path, name: Any, value: Any) -> Tensor:
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise InputError(
            f"{file}: {name!r:.80} holds a {type(value).__name__}; expected {EXPECTED}; save "
            "model.state_dict() alone"
        )
    is_bfloat16 = value.dtype == torch.bfloat16
    known = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool)
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if value.dtype not in known + whole or value.layout != torch.strided or value.is_meta:
        raise InputError(
            f"{file}: tensor {name} is {value.layout} of {value.dtype}; expected numbers of a "
            "common type, all of them stored"
        )
    if value.numel() * value.element_size() > file.stat().st_size:  # one number for many places
        raise damaged(file, f"at least {value.numel() * value.element_size()} bytes for {name}")
    flat = value.detach().contiguous()  # numpy has no bfloat16 that torch knows of
    array: np.ndarray = (flat.view(torch.int16) if is_bfloat16 else flat).numpy()
    dtype = np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else array.dtype

    def fill(buffer: np.ndarray) -> None:
        buffer[:] = array.reshape(-1).view(np.uint8)

    return Tensor(file, tuple(value.shape), dtype, fill)


def _foreign(file: Path) -> Iterator[str]:
    """The classes and functions that a pickle names and tensors do not need, as module.name.

    Nothing is loaded. Of a damaged pickle, those up to the damage.
    """
    try:
        with open(file, "rb") as stream:
            if not zipfile.is_zipfile(file):
                for _ in range(4):  # a magic number, a version, the system, the state dict
                    yield from _names(stream)
                return
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("/data.pkl") and entry.file_size < _MAX_PICKLE:
                    with archive.open(entry) as member:
                        yield from _names(member)
    except Exception:  # whatever a damaged file makes of the parsers
        return


def _names(stream: Any) -> Iterator[str]:
    texts: list[str] = ["", ""]
    for code, argument, _ in pickletools.genops(stream):
        if isinstance(argument, str):
            texts = [texts[-1], argument]
        found = None
        if code.name in ("GLOBAL", "INST"):
            found = argument
        elif code.name == "STACK_GLOBAL":
            found = " ".join(texts)
        if isinstance(found, str) and not _HARMLESS.fullmatch(found):
            yield found.replace(" ", ".")
