"""The arrays that callers hand to the public classes, checked: ids, masks, embeddings, labels."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError

_FLAGS = ("attention_mask", "segment_ids")  # may be booleans
_POSITIONS = ("head_positions", "pooled_positions")
_TOKENS = ("input_ids", "inputs_embeds")
LABELS = ("labels", "next_sentence_label", "start_positions", "end_positions")
IGNORED = -100  # a label that does not count


class RowArrays(TypedDict, total=False):
    """What a call takes by its place, too: integers [B, T], for multiple choice also [B, C, T].

    Attributes:
        input_ids: tokens.
        attention_mask: 0 for padding; also [B, T, S] or [B, N, T, S], see `Visibility.of_rows`.
        token_type_ids: of the first or the second text.
        position_ids: rows of the position table.
    """

    input_ids: Any
    attention_mask: Any
    token_type_ids: Any
    position_ids: Any


class MoreArrays(TypedDict, total=False):
    """What a call takes by name only: other tokens, packed rows, and labels for `loss`.

    Attributes:
        inputs_embeds: floating [B, T, E], in the place of `input_ids`: what stands for the rows of
            the word table.
        segment_ids: [B, T], packed rows: 1, 2, … for the examples, one after the other, 0 for
            padding; positions restart in each.
        head_positions: [B, P], the tokens that a head looks at.
        pooled_positions: [B, Q], those of a second head.
        labels: classes of the rows [B] or tokens [B, T], -100 for one that does not count; numbers
            [B] or [B, C] for regression, 0 and 1 [B, C] for several labels a row.
        next_sentence_label: [B], beside `labels` in BERT's pretraining.
        start_positions: [B], a question's answer.
        end_positions: [B].
    """

    inputs_embeds: Any
    segment_ids: Any
    head_positions: Any
    pooled_positions: Any
    labels: Any
    next_sentence_label: Any
    start_positions: Any
    end_positions: Any


class Arrays(RowArrays, MoreArrays, total=False):
    """All arrays of a call."""


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


def check_labels(labels: dict[str, Any], classes: dict[str, int]) -> dict[str, jax.Array]:
    """`labels` as int32 and, of floating numbers and booleans, float32 arrays.

    classes: how many there are, by name. Values of arrays on a device are not looked at.

    Raises:
        InputError: no numbers, or a class that there is not.
    """
    arrays = {name: _array(name, x) for name, x in labels.items()}
    for name, array in arrays.items():
        whole = jnp.issubdtype(array.dtype, jnp.integer)
        if not (whole or array.dtype == jnp.bool_ or jnp.issubdtype(array.dtype, jnp.floating)):
            raise InputError(f"{name}: found numbers of type {array.dtype}, expected real numbers")
        if whole and name in classes and isinstance(array, np.ndarray):
            _check_range(name, array[array != IGNORED], classes[name])
    return {name: _narrow(x if x.dtype != bool else x.astype("f4")) for name, x in arrays.items()}


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
    **dict.fromkeys(LABELS, f"{IGNORED} is a label that does not count"),
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
