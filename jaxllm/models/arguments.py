"""What callers hand to the public classes, checked: keywords, the computation, ids and masks."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.attention.backends import ATTENDS
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES, Compute
from jaxllm.models.blocks import REMAT_POLICIES
from jaxllm.names.attributes import BOOKKEEPING, nearest

DTYPES = ("float32", "bfloat16", "float16")
# transformers' keyword -> what to do here
_INSTEAD = {
    "torch_dtype": 'give dtype="bfloat16" or dtype="float32"',
    "attn_implementation": f"give attention=, {', '.join(ATTENDS)} or a function",
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
_TOKENS = ("input_ids", "inputs_embeds")
ARRAYS = (
    *_TOKENS,
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "segment_ids",
    *_POSITIONS,
)


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
    """One of DTYPES, of a name, a jax.numpy or numpy type, or a dtype.

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


def compute_of(dtype: Any, attention: Any, remat: Any, unroll: Any) -> Compute:
    """How a model is computed, see `Compute`.

    Raises:
        InputError: a value that is not implemented; an attention that cannot be the key of a
            compiled program, as it has no hash.
    """
    if not (callable(attention) or (isinstance(attention, str) and attention in ATTENDS)):
        raise InputError(
            f"attention: found {attention!r:.80}, expected one of {', '.join(ATTENDS)}, or a "
            "function of (q, k, v, visibility, dropout_rate=, key=)"
        )
    try:
        hash(attention)
    except TypeError as error:
        raise InputError(
            f"attention: found {attention!r:.80}, which has no hash; give a function, or define "
            "__hash__: a program is compiled for each"
        ) from error
    policies = ("none", *REMAT_POLICIES)
    if remat not in policies:
        raise InputError(f"remat: found {remat!r:.80}, expected one of {', '.join(policies)}")
    if isinstance(unroll, bool) or not isinstance(unroll, int) or unroll < 0:
        raise InputError(
            f"unroll: found {unroll!r:.80}, expected how many blocks one iteration of the scan "
            "computes, or 0 for all of them"
        )
    return Compute(dtype_name(dtype), attention, remat, unroll)


def check_inputs(
    inputs: dict[str, Any],
    sizes: dict[str, int],
    *,
    width: int,
    heads: int,
    longest: int | None,
    choices: bool,
) -> dict[str, Any]:
    """`inputs` as int32 and float32 arrays of shapes and values that fit each other.

    inputs: `input_ids` [B, T] or, with `choices`, [B, C, T], or `inputs_embeds` with one more axis
    of `width`, and others by name, no None. sizes: rows of the tables that ids are looked up in.
    heads: of an attention. longest: tokens of an example that there are positions for. Values of
    arrays on a device are not looked at: that would wait for them.

    Raises:
        InputError: a shape, type or value that XLA would answer with wrong numbers.
    """
    tokens = [name for name in _TOKENS if name in inputs]
    if len(tokens) != 1:
        found = " and ".join(tokens) or "neither"
        raise InputError(f"expected input_ids or inputs_embeds, found {found}")
    arrays = {name: _array(name, x) for name, x in inputs.items()}
    shape = _shape_of_tokens(tokens[0], arrays[tokens[0]].shape, width, choices=choices)
    limits = {"attention_mask": 2, "segment_ids": 2**31, **sizes}
    limits |= dict.fromkeys(_POSITIONS, shape[-1])
    for name, array in arrays.items():
        _check_shape(name, array.shape, shape, heads)
        _check_type(name, array)
        whole = not jnp.issubdtype(array.dtype, jnp.floating)
        if whole and name in limits and isinstance(array, np.ndarray):
            _check_range(name, array, limits[name])
    segments = arrays.get("segment_ids")
    if isinstance(segments, np.ndarray) and longest is not None and "position_ids" not in arrays:
        _check_segments(segments, longest)
    return {name: _narrow(array) for name, array in arrays.items()}


def _narrow(array: Any) -> jax.Array:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.asarray(array, jnp.float32 if floating else jnp.int32)


def _shape_of_tokens(
    name: str, shape: tuple[int, ...], width: int, *, choices: bool
) -> tuple[int, ...]:
    """The axes of rows (, choices) and tokens."""
    embedded = name == "inputs_embeds"
    tokens = shape[:-1] if embedded else shape
    fits = len(tokens) in ((2, 3) if choices else (2,)) and tokens[-1] != 0
    if not fits or (embedded and shape[-1] != width):
        last = f", {width}]" if embedded else "]"
        expected = f"[rows, tokens{last}" + (f" or [rows, choices, tokens{last}" if choices else "")
        raise InputError(f"{name}: found the shape {list(shape)}, expected {expected}")
    return tokens


def _check_type(name: str, array: Any) -> None:
    kinds: list[Any] = [jnp.floating if name == "inputs_embeds" else jnp.integer]
    if name in _FLAGS:
        kinds.append(jnp.bool_)
    if name == "attention_mask" and array.ndim > 2:
        kinds.append(jnp.floating)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        whole = "whole numbers; where all are whole, convert them with astype(int)"
        expected = "floating numbers" if name == "inputs_embeds" else whole
        raise InputError(f"{name}: found numbers of type {array.dtype}, expected {expected}")


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


def _check_shape(name: str, found: tuple[int, ...], rows: tuple[int, ...], heads: int) -> None:
    """rows: the shape of the tokens."""
    if name == "inputs_embeds":
        return
    if name in _POSITIONS:
        fits = len(found) == len(rows) == 2 and found[0] == rows[0] and found[1] > 0
        expected = f"[{rows[0]}, positions] beside input_ids [{rows[0]}, tokens]"
    else:
        one_for_all = (1, rows[1]) if name == "position_ids" and len(rows) == 2 else rows
        fits = found in (rows, one_for_all)
        expected = f"{list(rows)}, that of input_ids"
    if name == "attention_mask" and len(rows) == 2:
        B, T = rows
        masks = [(B, T, T), (B, heads, T, T)]
        fits = fits or any(_is_broadcast(found, mask) for mask in masks)
        expected += f", or {' or '.join(str(list(mask)) for mask in masks)}, 1 for all but the last"
    if not fits:
        raise InputError(f"{name}: found the shape {list(found)}, expected {expected}")


def _is_broadcast(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether each axis but the last is that of `shape` or 1."""
    pairs = zip(found[:-1], shape[:-1], strict=False)
    return (
        len(found) == len(shape)
        and found[-1] == shape[-1]
        and all(size in (1, full) for size, full in pairs)
    )


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
