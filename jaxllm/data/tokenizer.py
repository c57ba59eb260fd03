"""Tokenizers by path, and text to token arrays of a bounded length."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.data.backend import Backend
from jaxllm.data.long_texts import Shortener
from jaxllm.errors import InputError
from jaxllm.files import read_json, reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VOCABULARIES = r"tokenizer\.json|vocab\.(txt|json)|.*\.model"
_DESCRIPTION, _ADDED = "tokenizer_config.json", "added_tokens.json"
# Keys of the description that are true or false; the library's own error does not name them.
_SWITCHES = (
    "add_prefix_space",
    "do_basic_tokenize",
    "do_lower_case",
    "lowercase",
    "strip_accents",
    "tokenize_chinese_chars",
    "trim_offsets",
)
_WORDS = 2  # of a part of a sentence, for each token that is needed of it
_READABLE = "a tokenizer that transformers reads"
_JAPANESE = "it divides text into words with MeCab or Sudachi, packages of Python code"


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a directory, a Hub id or ``package:NAME/sub/dir``.

    A directory that has ``vocab.txt``, but neither ``tokenizer.json`` nor
    ``tokenizer_config.json``, gives BERT WordPiece, with the tokens of ``added_tokens.json`` if
    that is there; it lower-cases the text if the vocabulary holds no word with an ASCII capital.

    Raises:
        InputError: nothing is there, nothing that transformers can make a fast tokenizer of, or a
            file that is damaged.
    """
    from transformers import BertTokenizer

    from jaxllm.pretrained.hf import resolve

    directory = Path(resolve(path, weights=False))
    # Without any vocabulary transformers 5 gives a tokenizer that knows the special tokens only.
    if not any(re.fullmatch(_VOCABULARIES, file.name) for file in directory.iterdir()):
        raise InputError(_missing(directory))
    description = _description(directory)
    whole, vocabulary = directory / "tokenizer.json", directory / "vocab.txt"
    if whole.is_file():
        with reading(whole, _READABLE):
            tokenizer = _auto(directory)
    else:
        _check_fast(directory, _class_name(directory, description))
        with reading(vocabulary, _READABLE):
            uncased = vocabulary.is_file() and _uncased(vocabulary)
        with reading(directory, _READABLE):
            if vocabulary.is_file() and description is None:
                tokenizer = BertTokenizer.from_pretrained(directory, do_lower_case=uncased)
            else:
                tokenizer = _auto(directory)
        _check_added(directory / _ADDED, tokenizer)
    _check_fast(directory, type(tokenizer).__name__)
    return tokenizer


def _auto(directory: Path) -> Any:
    """What transformers makes of a directory."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{directory}: {_DESCRIPTION} names a class whose code is in the directory "
                "(auto_map), and code of a checkpoint is never run; expected a tokenizer.json that "
                "is complete without it: remove auto_map and tokenizer_class to take it as it is"
            ) from error
        if any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
            raise
        # Others, such as spiece.model, take packages to read.
        raise InputError(f"{_missing(directory)}. transformers said: {error}") from error


def _description(directory: Path) -> dict[str, Any] | None:
    """What the directory says of its tokenizer; None where it has no description."""
    file = directory / _DESCRIPTION
    if not file.is_file():
        return None
    description = read_json(file, dict, "what a tokenizer's save_pretrained writes")
    for name, value in description.items():
        if value is None:
            continue
        fits, expected = True, ""
        if name in _SWITCHES:
            fits, expected = isinstance(value, bool), "true or false"
        elif name in ("model_max_length", "max_len"):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits, expected = number and value >= 1, "a number from 1 on"
        elif name == "tokenizer_class":
            fits, expected = isinstance(value, str), "the name of a class"
        if not fits:
            raise InputError(f"{file}: {name}: found {value!r}, expected {expected}")
    return description


def _class_name(directory: Path, description: dict[str, Any] | None) -> str | None:
    """The class that the directory names for its tokenizer, in a description or, older, beside the
    model's config; None where it names none.
    """
    if description is None or "tokenizer_class" not in description:
        file = directory / "config.json"
        description = read_json(file, dict, "a model's config") if file.is_file() else {}
    return description.get("tokenizer_class")


def _check_fast(directory: Path, name: str | None) -> None:
    """Refuses a class of tokenizers that is run in Python, but none that transformers lacks."""
    import transformers

    kind = getattr(transformers, str(name), None)
    if isinstance(kind, type) and not issubclass(kind, transformers.PreTrainedTokenizerFast):
        why = _JAPANESE if "Japanese" in str(name) else "transformers runs it in Python"
        raise InputError(
            f"{directory}: {name} is not a fast tokenizer: {why}, and it has no form that the "
            "tokenizers library runs. Expected tokenizer.json there, from the save_pretrained of a "
            "fast tokenizer; take a model that has one"
        )


def _check_added(file: Path, tokenizer: Any) -> None:
    """Refuses tokens that have other ids than the file of added tokens says."""
    if not file.is_file():
        return
    known = tokenizer.get_vocab()
    for token, number in read_json(file, dict, "ids of tokens").items():
        if known.get(token) != number:
            raise InputError(
                f"{file}: found {token!r}: {number!r}, but behind the vocabulary it gets the id "
                f"{known.get(token)}; expected ids that follow those of the vocabulary"
            )


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


@dataclass(frozen=True)
class Encoded:
    """Token arrays of n texts, one after the other.

    Attributes:
        tokens: int32[total].
        type_ids: uint8[total].
        lengths: int64[n], tokens kept; 0 for a text that was too long and not to be cut.
        full_lengths: int64[n], tokens before the cut.
        whole: bool[n]; False: the text was so long that only a part was tokenized, and
            `full_lengths` is one more than the most that are kept.
    """

    tokens: np.ndarray
    type_ids: np.ndarray
    lengths: np.ndarray
    full_lengths: np.ndarray
    whole: np.ndarray

    def count(self, i: int) -> str:
        """How many tokens text i has, as far as is known."""
        full = int(self.full_lengths[i])
        return str(full) if self.whole[i] else f"more than {full - 1}"


class Encoder:
    """Text, or two texts, to tokens with the special ones around them, at most `max_length`.

    `truncation` "right" or "left" cuts there, of two texts the longer one first; with "error" and
    "drop" a text that is too long gives no tokens. `prompt`: what the first text begins with. Safe
    to use from several threads.

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
        words: bool = False,
        prompt: str = "",
    ):
        # Cutting is done here, as the library's takes quadratic time and memory on long pairs.
        self._backend = Backend(tokenizer, words=words)
        self._max_length = max_length
        self._truncation = truncation
        self._prompt = prompt
        self._shortened = Shortener(self._backend, max_length, left=truncation == "left")
        specials = self._backend.specials(pair=pair)
        if prompt:
            specials += len(self._backend.encode_batch([prompt], specials=False)[0])
        if max_length < specials + 1 + pair:
            raise InputError(
                f"data.max_length={max_length} leaves no room for text beside {specials} special "
                f"tokens{' and those of the prompt' if prompt else ''}; expected at least "
                f"{specials + 1 + pair}"
            )

    def fingerprint(self) -> str:
        """See `Backend.fingerprint`."""
        return self._backend.fingerprint() + self._prompt

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """Tokens of `texts`, or of each text with its pair."""
        if self._prompt:
            texts = [self._prompt + text for text in texts]
        inputs: list[Any] = list(texts)
        parts: list[Any] = list(map(self._shortened, texts))
        if pairs is not None:
            inputs = list(zip(texts, pairs, strict=True))
            parts = list(zip(parts, map(self._shortened, pairs), strict=True))
        whole = [x == y for x, y in zip(inputs, parts, strict=True)]
        encodings = self._backend.encode_batch_fast(parts)
        for i, encoding in enumerate(encodings):
            if pairs is not None and not whole[i] and self._needs_counts(encoding):
                (encodings[i],) = self._backend.encode_batch_fast([inputs[i]])
                whole[i] = True
        return self._cut(encodings, whole)[0]

    def _needs_counts(self, pair: Any) -> bool:
        """Whether it hangs on which text is the longer one how many tokens each keeps."""
        part = pair.sequence_ids
        room = self._max_length - part.count(None)
        return room % 2 == 1 and min(part.count(0), part.count(1)) > room // 2

    def _cut(
        self, encodings: list[Any], whole: list[bool]
    ) -> tuple[Encoded, dict[int, np.ndarray]]:
        """Their tokens, and which of its tokens each encoding keeps that was too long."""
        full = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = [encoding.ids for encoding in encodings]
        types = [encoding.type_ids for encoding in encodings]
        kept = {int(i): self._kept(encodings[i]) for i in np.flatnonzero(full > self._max_length)}
        for i, keep in kept.items():
            ids[i] = list(itertools.compress(ids[i], keep))
            types[i] = list(itertools.compress(types[i], keep))
        full[~np.array(whole, bool)] = self._max_length + 1
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        chain = itertools.chain.from_iterable
        encoded = Encoded(
            np.fromiter(chain(ids), np.int32, total),
            np.fromiter(chain(types), np.uint8, total),
            lengths,
            full,
            np.array(whole, bool),
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
    """As `Encoder`, for texts that are divided into words, see `Backend`."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", max_length: int, truncation: str = "right"
    ):
        super().__init__(tokenizer, max_length, truncation, words=True)

    def encode_words(self, texts: Sequence[Sequence[str]]) -> tuple[Encoded, np.ndarray]:
        """Tokens of `texts`, and int64[total]: a word's number in its text at the word's first
        piece, -1 at other tokens.
        """
        parts = [self._part(words) for words in texts]
        begins = [begin for begin, _ in parts]
        encodings = self._backend.encode_batch([words for _, words in parts], words=True)
        whole = [len(part) == len(words) for (_, part), words in zip(parts, texts, strict=True)]
        encoded, kept = self._cut(encodings, whole)
        numbers = [np.zeros(0, np.int64)]
        for i, encoding in enumerate(encodings):
            found = [-1 if word is None else begins[i] + word for word in encoding.word_ids]
            words = np.array(found, np.int64)
            words[1:][words[1:] == words[:-1]] = -1
            numbers.append(words[kept[i]] if i in kept else words)
        return encoded, np.concatenate(numbers)

    def _part(self, words: Sequence[str]) -> tuple[int, list[str]]:
        """The number of the first word of a part that has tokens enough, and the part's words."""
        size = _WORDS * self._max_length
        while 2 * size < len(words):
            begin = len(words) - size if self._truncation == "left" else 0
            part = list(words[begin : begin + size])
            (encoding,) = self._backend.encode_batch([part], words=True, specials=False)
            if len(encoding) > self._max_length:
                return begin, part
            size *= 4
        return 0, list(words)


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
