"""What callers hand to the public classes, checked: keywords, a dtype, ids and masks."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.models import FAMILIES
from jaxllm.names.attributes import BOOKKEEPING, nearest

DTYPES = ("float32", "bfloat16")
# transformers' keyword -> what to do here
_INSTEAD = {
    "torch_dtype": 'give dtype="bfloat16" or dtype="float32"',
    "attn_implementation": 'give attention="xla", "blocked", "cudnn", "triton" or "splash"',
    "_do_init": "leave it out: parameters are always loaded, and model.params may be replaced",
    "from_pt": "leave it out: the format of the weights is found by the names of the files",
    "from_flax": "leave it out: the format of the weights is found by the names of the files",
    "trust_remote_code": "leave it out: code of a checkpoint is never run",
    "device_map": "use jax.default_device, or jax.device_put on model.params",
    "cache_dir": "set HF_HOME",
    "token": "set HF_TOKEN",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "revision": "give the directory that huggingface_hub.snapshot_download returns",
    "subfolder": "give the folder as part of the path",
}
_FLAGS = ("attention_mask", "segment_ids")  # may be booleans
_POSITIONS = ("head_positions", "pooled_positions")


def check_keywords(
    given: Collection[str], arguments: Collection[str], *, attributes: bool = True
) -> None:
    """InputError for the first keyword that is not one of `arguments`.

    attributes: whether those of a config are keywords, too; but not those without an effect, such
    as a length to generate.
    """
    known, expected = set(arguments), ", ".join(arguments)
    if attributes:
        tables = [family.table for family in FAMILIES.values()]
        known |= BOOKKEEPING.union(*(table.attributes.effective for table in tables))
        known -= _INSTEAD.keys()
        expected += " or an attribute of the model's config"
    for name in given:
        if name in _INSTEAD:
            raise InputError(f"{name}=: a keyword of transformers, not of jaxllm; {_INSTEAD[name]}")
        if name not in known:
            raise InputError(f"{name}=: expected {expected}{nearest(name, known)}")


def dtype_name(dtype: Any) -> str:
    """`float32` or `bfloat16`, of a name, a jax.numpy or numpy type, or a dtype.

    Raises:
        InputError: it is another, or none.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise InputError(f"dtype: found {dtype!r:.80}, expected one of {', '.join(DTYPES)}")
    return name


def check_inputs(
    inputs: dict[str, Any], sizes: dict[str, int], *, longest: int | None, choices: bool
) -> dict[str, Any]:
    """`inputs` as int32 arrays of shapes and values that fit each other.

    inputs: `input_ids` [B, T] or, with `choices`, [B, C, T], and others by name, no None. sizes:
    rows of the tables that ids are looked up in. longest: tokens of an example that there are
    positions for. Values of arrays on a device are not looked at: that would wait for them.

    Raises:
        InputError: a shape, type or value that XLA would answer with wrong numbers.
    """
    arrays = {name: _array(name, x) for name, x in inputs.items()}
    shape = arrays["input_ids"].shape
    if len(shape) not in ((2, 3) if choices else (2,)) or shape[-1] == 0:
        expected = "[rows, tokens] or [rows, choices, tokens]" if choices else "[rows, tokens]"
        raise InputError(f"input_ids: found the shape {list(shape)}, expected {expected}")
    limits = {"attention_mask": 2, "segment_ids": 2**31, **sizes}
    limits |= dict.fromkeys(_POSITIONS, shape[-1])
    for name, array in arrays.items():
        _check_shape(name, array.shape, shape)
        whole = jnp.issubdtype(array.dtype, jnp.integer)
        if not (whole or (name in _FLAGS and array.dtype == jnp.bool_)):
            raise InputError(
                f"{name}: found numbers of type {array.dtype}, expected whole numbers; where all "
                "are whole, convert them with astype(int)"
            )
        if name in limits and isinstance(array, np.ndarray):
            _check_range(name, array, limits[name])
    segments = arrays.get("segment_ids")
    if isinstance(segments, np.ndarray) and longest is not None and "position_ids" not in arrays:
        _check_segments(segments, longest)
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


def _array(name: str, x: Any) -> Any:
    """A numpy array; one of jax where `x` is on a device, or has parts that are."""
    on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
    try:
        return jnp.asarray(x) if on_device else np.asarray(x)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"{name}: found no array of whole numbers; expected rows of one length: pad them, and "
            "mark the padding with 0 in attention_mask"
        ) from error


def _check_shape(name: str, found: tuple[int, ...], rows: tuple[int, ...]) -> None:
    """rows: the shape of input_ids."""
    if name in _POSITIONS:
        fits = len(found) == len(rows) == 2 and found[0] == rows[0] and found[1] > 0
        expected = f"[{rows[0]}, positions] beside input_ids [{rows[0]}, tokens]"
    else:
        one_for_all = (1, rows[1]) if name == "position_ids" and len(rows) == 2 else rows
        fits = found in (rows, one_for_all)
        expected = f"{list(rows)}, that of input_ids"
    if not fits:
        raise InputError(f"{name}: found the shape {list(found)}, expected {expected}")


def _check_segments(segments_BT: np.ndarray, longest: int) -> None:
    for i, row in enumerate(segments_BT):
        count = np.unique(row[row > 0], return_counts=True)[1].max(initial=0)
        if count > longest:
            raise InputError(
                f"segment_ids: found a segment of {count} tokens in row {i}, the model has "
                f"{longest} positions; truncate or split it"
            )


_WAYS_OUT = {
    "position_ids": "split or truncate the rows",
    "attention_mask": "1 is a token, 0 is padding; the examples of a packed row are segment_ids",
    "segment_ids": "0 is padding",
    "head_positions": "a position is a token's place in its row, from 0",
    "pooled_positions": "a position is a token's place in its row, from 0",
}


def _check_range(name: str, array: np.ndarray, size: int) -> None:
    """InputError where ids are not 0 to `size` - 1: XLA would answer with NaN or other rows."""
    if array.size and not (0 <= array.min() and array.max() < size):
        worst = array.max() if array.max() >= size else array.min()
        way_out = _WAYS_OUT.get(name, "give the tokenizer that belongs to the model")
        raise InputError(f"{name}: found {worst}, expected 0 to {size - 1}; {way_out}")
