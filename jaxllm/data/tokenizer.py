"""Tokenizers by path, and text to token arrays of a bounded length."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VOCABULARIES = r"tokenizer\.json|vocab\.(txt|json)|.*\.model"


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a directory, a Hub id or ``package:NAME/sub/dir``.

    A directory whose only tokenizer file is ``vocab.txt`` gives BERT WordPiece; it lower-cases the
    text if the vocabulary holds no word with an ASCII capital.

    Raises:
        InputError: nothing is there, or nothing that transformers can make a fast tokenizer of.
    """
    from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

    from jaxllm.pretrained.hf import resolve

    directory = Path(resolve(path, weights=False))
    vocabulary = directory / "vocab.txt"
    described = any((directory / f).exists() for f in ("tokenizer.json", "tokenizer_config.json"))
    if vocabulary.exists() and not described:
        return BertTokenizer(vocab=str(vocabulary), do_lower_case=_uncased(vocabulary))
    # Without any vocabulary transformers 5 gives a tokenizer that knows the special tokens only.
    if not any(re.fullmatch(_VOCABULARIES, file.name) for file in directory.iterdir()):
        raise InputError(_missing(directory))
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{directory}: tokenizer_config.json names a class whose code is in the directory "
                "(auto_map), and code of a checkpoint is never run; expected a tokenizer.json that "
                "is complete without it: remove auto_map and tokenizer_class to take it as it is"
            ) from error
        raise InputError(_missing(directory)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"{directory}: {type(tokenizer).__name__} is not a fast tokenizer; expected "
            "tokenizer.json there (a fast tokenizer's save_pretrained writes it)"
        )
    return tokenizer


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """One more than the highest token id: where ids have gaps, more than ``len(tokenizer)``."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _missing(directory: Path) -> str:
    return (
        f"{directory}: there is no tokenizer that can be read; expected tokenizer.json or "
        "vocab.txt, or set model.tokenizer to where the tokenizer is"
    )


def _uncased(vocabulary: Path) -> bool:
    words = vocabulary.read_text(encoding="utf-8").splitlines()
    return not any(re.match(r"(##)?[a-z]*[A-Z]", word) for word in words)


def backend_fingerprint(backend: Any) -> str:
    """Another string for every tokenizer of the `tokenizers` library that can give other tokens."""
    from tokenizers import __version__

    return json.dumps([__version__, json.loads(backend.to_str())], sort_keys=True)


@dataclass(frozen=True)
class Encoded:
    """Token arrays of n texts, one after the other.

    Attributes:
        tokens: int32[total].
        type_ids: uint8[total].
        lengths: int64[n], tokens kept; 0 for a text that was too long and not to be cut.
        full_lengths: int64[n], tokens before the cut.
    """

    tokens: np.ndarray
    type_ids: np.ndarray
    lengths: np.ndarray
    full_lengths: np.ndarray


class Encoder:
    """Text, or two texts, to tokens with the special ones around them, at most `max_length`.

    `truncation` "right" or "left" cuts there, of two texts the longer one first; with "error" and
    "drop" a text that is too long gives no tokens. Safe to use from several threads.

    Raises:
        InputError: `max_length` leaves no room beside the special tokens.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        max_length: int,
        truncation: str = "right",
        *,
        pair: bool = False,
    ):
        from tokenizers import Tokenizer

        # A copy: the caller's tokenizer may pad or truncate, and others may change that meanwhile.
        # Cutting is done here, as the library's takes quadratic time and memory on long pairs.
        self._backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._max_length = max_length
        self._truncation = truncation
        specials = self._backend.num_special_tokens_to_add(is_pair=pair)
        if max_length < specials + 1 + pair:
            raise InputError(
                f"data.max_length={max_length} leaves no room for text beside {specials} special "
                f"tokens; expected at least {specials + 1 + pair}"
            )

    def fingerprint(self) -> str:
        """See `backend_fingerprint`."""
        return backend_fingerprint(self._backend)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Tokens of `texts`, or of each text with its pair."""
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return self._cut(self._backend.encode_batch_fast(inputs))[0]

    def _cut(self, encodings: list[Any]) -> tuple[Encoded, dict[int, np.ndarray]]:
        """Their tokens, and which of its tokens each encoding keeps that was too long."""
        full = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = [encoding.ids for encoding in encodings]
        types = [encoding.type_ids for encoding in encodings]
        kept = {int(i): self._kept(encodings[i]) for i in np.flatnonzero(full > self._max_length)}
        for i, keep in kept.items():
            ids[i] = list(itertools.compress(ids[i], keep))
            types[i] = list(itertools.compress(types[i], keep))
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        chain = itertools.chain.from_iterable
        encoded = Encoded(
            np.fromiter(chain(ids), np.int32, total),
            np.fromiter(chain(types), np.uint8, total),
            lengths,
            full,
        )
        return encoded, kept

    def _kept(self, encoding: Any) -> np.ndarray:
        """bool[n]: the tokens of a text that is too long that stay."""
        if self._truncation not in ("right", "left"):
            return np.zeros(len(encoding), bool)
        part = np.array([-1 if s is None else s for s in encoding.sequence_ids])
        keep = part == -1  # the special tokens
        first, second = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
        room = self._max_length - int(keep.sum())
        for positions, share in zip(
            (first, second), shares(len(first), len(second), room), strict=True
        ):
            start = 0 if self._truncation == "right" else len(positions) - share
            keep[positions[start : start + share]] = True
        return keep


class WordEncoder(Encoder):
    """As `Encoder`, for texts that are divided into words.

    A word is spelled as behind a space, also the first one (transformers' `add_prefix_space`, which
    byte-level tokenizers need for words).
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", max_length: int, truncation: str = "right"
    ):
        from tokenizers import Tokenizer

        super().__init__(tokenizer, max_length, truncation)
        description = json.loads(self._backend.to_str())
        splitter = description["pre_tokenizer"] or {}
        for part in splitter.get("pretokenizers", [splitter]):
            if "add_prefix_space" in part:
                part["add_prefix_space"] = True
        self._backend = Tokenizer.from_str(json.dumps(description))

    def encode_words(self, texts: Sequence[Sequence[str]]) -> tuple[Encoded, np.ndarray]:
        """Tokens of `texts`, and int64[total]: a word's number in its text at the word's first
        piece, -1 at other tokens.
        """
        encodings = self._backend.encode_batch(
            [list(words) for words in texts], is_pretokenized=True
        )
        encoded, kept = self._cut(encodings)
        numbers = [np.zeros(0, np.int64)]
        for i, encoding in enumerate(encodings):
            words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
            words[1:][words[1:] == words[:-1]] = -1
            numbers.append(words[kept[i]] if i in kept else words)
        return encoded, np.concatenate(numbers)


def shares(
    first: int | np.ndarray, second: int | np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many of two texts' tokens fit in `room`, the longer cut first; as `tokenizers` does.

    Of one pair or of arrays of them.
    """
    short = np.minimum(first, second)
    short = np.where(short > room - short, room // 2, short)
    long = room - short
    fits = np.add(first, second) <= room
    return (
        np.where(fits, first, np.where(first <= second, short, long)),
        np.where(fits, second, np.where(first <= second, long, short)),
    )
