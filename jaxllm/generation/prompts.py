"""Prompts as a caller gives them, and as the model reads them: one shape, padded on the left."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm.errors import InputError
from jaxllm.generation.options import DEFAULT_NEW_TOKENS, Options

SHORTEST = 16  # places are this times a power of two: few programs are compiled


@dataclass(frozen=True)
class Prompts:
    """ids_BP int32 and mask_BP int32, 0 for padding; each row ends in a token."""

    ids_BP: np.ndarray
    mask_BP: np.ndarray

    @classmethod
    def of(
        cls, input_ids: Any, attention_mask: Any, options: Options, vocabulary: int
    ) -> "Prompts":
        """The prompts of arrays, or of a list of lists of different lengths.

        Without a mask, tokens that are the pad id are padding wherever they stand, unless the pad
        id ends a text, too, as in transformers.

        Raises:
            InputError: no tokens, ids that the model lacks, a mask of another shape, a row that is
                empty or that ends in padding.
        """
        ids_BP, own_BP = _rectangular(input_ids, options.fill_id or options.pad_token_id or 0)
        if not ids_BP.size:
            raise InputError(
                f"input_ids: found the shape {list(ids_BP.shape)}, an empty prompt; expected at "
                "least one token a row, such as bos_token_id"
            )
        wrong = (ids_BP < 0) | (ids_BP >= vocabulary)
        if wrong.any():
            row, place = np.argwhere(wrong)[0]
            raise InputError(
                f"input_ids: found {ids_BP[row, place]} in row {row}, expected token ids, 0 to "
                f"{vocabulary - 1}"
            )
        if attention_mask is not None:
            mask_BP = _array("attention_mask", attention_mask)
            if mask_BP.shape != ids_BP.shape:
                raise InputError(
                    f"attention_mask: found the shape {list(mask_BP.shape)}, expected that of "
                    f"input_ids, {list(ids_BP.shape)}"
                )
            mask_BP = (mask_BP != 0) & own_BP
        else:
            mask_BP = own_BP
            pad = options.pad_token_id
            if pad is not None and pad not in options.eos_token_id:
                mask_BP = own_BP & (ids_BP != pad)
        for row in np.flatnonzero(~mask_BP.any(1)):
            raise InputError(
                f"input_ids: row {row} has no token that is not padding, an empty prompt; expected "
                "at least one, such as bos_token_id"
            )
        for row in np.flatnonzero(~mask_BP[:, -1]):
            raise InputError(
                f"input_ids: row {row} ends in padding, and what follows would go on from there; "
                "pad on the left: tokenizer.padding_side = 'left'"
            )
        return cls(ids_BP.astype(np.int32), mask_BP.astype(np.int32))

    @property
    def length(self) -> int:
        return self.ids_BP.shape[1]

    @property
    def ignored(self) -> np.ndarray:
        """Places of padding that each row begins with."""
        return self.mask_BP.argmax(1).astype(np.int32)

    def repeated(self, times: int) -> "Prompts":
        """Each row so many times, one after the other."""
        return Prompts(self.ids_BP.repeat(times, 0), self.mask_BP.repeat(times, 0))

    def padded(self, length: int) -> "Prompts":
        """Rows of `length` places, more of them on the left."""
        more = ((0, 0), (length - self.length, 0))
        return Prompts(np.pad(self.ids_BP, more), np.pad(self.mask_BP, more))


def lengths(options: Options, prompts: Prompts, positions: int | None) -> tuple[int, int]:
    """(least, greatest) length of prompt and continuation, in places of the prompts' rows.

    positions: tokens of a row that the model has positions for; None: any.

    Raises:
        InputError: the prompt is longer, or what is asked for is, or nothing is left to write.
    """
    P, tokens = prompts.length, prompts.mask_BP.sum(1)
    row = int(tokens.argmax())
    longest = int(tokens[row])
    if positions is not None and longest > positions:
        raise InputError(
            f"input_ids: row {row} has {longest} tokens, the model has {positions} positions; "
            "truncate the prompt"
        )
    if options.max_new_tokens is not None:
        total = P + options.max_new_tokens
        asked = f"max_new_tokens: found {options.max_new_tokens}"
    elif options.max_length is not None:
        total = options.max_length
        asked = f"max_length: found {total}"
        if total <= P:
            raise InputError(
                f"{asked}, and the prompt has {P} places, which count; expected more than "
                f"{P}, or give max_new_tokens"
            )
    else:
        total = P + DEFAULT_NEW_TOKENS
        if positions is not None:
            total = max(P + 1, min(total, positions))
        asked = ""
    # The last token is written and not read.
    most = None if positions is None else positions - longest + 1
    if most is not None and total - P > most:
        raise InputError(
            f"{asked} beside a prompt of {longest} tokens, more than the model's {positions} "
            f"positions; expected at most {most} new tokens, or a shorter prompt"
        )
    least = options.min_length
    if options.min_new_tokens is not None:
        least = P + options.min_new_tokens
        if least > total:
            raise InputError(
                f"min_new_tokens: found {options.min_new_tokens}, more than the {total - P} new "
                "tokens that there are at most; give max_new_tokens, or a smaller number"
            )
    elif least > total:
        raise InputError(
            f"min_length: found {least}, more than the {total} tokens that prompt and continuation "
            "have at most; give max_length, or a smaller number"
        )
    return least, total


def places(count: int) -> int:
    """The bucket of so many places."""
    size = SHORTEST
    while size < count:
        size *= 2
    return size


def _rectangular(input_ids: Any, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [B, P], which are the caller's), of an array or of lists of different lengths."""
    if isinstance(input_ids, list | tuple) and input_ids:
        rows = [_array("input_ids", row) for row in input_ids]
        if all(row.ndim == 1 for row in rows) and len({len(row) for row in rows}) > 1:
            shape = len(rows), max(len(row) for row in rows)
            ids_BP, own_BP = np.full(shape, fill), np.zeros(shape, bool)
            for i, row in enumerate(rows):
                if len(row):
                    ids_BP[i, -len(row) :], own_BP[i, -len(row) :] = row, True
            return ids_BP, own_BP
    ids_BP = _array("input_ids", input_ids)
    if ids_BP.ndim != 2:
        raise InputError(
            f"input_ids: found the shape {list(ids_BP.shape)}, expected [B, P], a row for each "
            "prompt; put one prompt in brackets"
        )
    return ids_BP, np.ones(ids_BP.shape, bool)


def _array(name: str, given: Any) -> np.ndarray:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: found {given!r:.80}, expected whole numbers") from error
    if array.size and array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name}: found numbers of type {array.dtype}, expected whole numbers")
    return array
