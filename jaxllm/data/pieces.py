"""Documents cut into pieces to tokenize, and the words in them that a segmenter found."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxllm.data.rows import text_hash
from jaxllm.errors import InputError

# Characters of a piece. The library keeps tens of bytes for each character of a text, so a line of
# 50 MB is not given to it whole.
_LONGEST = 1 << 16

GOES_ON, LINE, DOCUMENT = range(3)  # what a piece begins

_SPACES = np.array([chr(c).isspace() for c in range(0x3001)])  # none has a higher number


class Piece(NamedTuple):
    """Part of a line.

    Attributes:
        begins: a document, a line of one, or nothing.
        words: int64[characters], the number of each one's word.
        hash: of the piece that begins a document, `text_hash` of all of it.
    """

    text: str
    begins: int
    words: np.ndarray | None
    hash: int = 0


def pieces_of(text: str, words: np.ndarray | None, *, verbatim: bool = False) -> Iterator[Piece]:
    """The lines of a document, those that are very long cut in front of a space.

    `verbatim`: all of the document as one line, with its line ends.
    """
    begins = DOCUMENT
    begin = 0
    while begin < len(text):
        end = -1 if verbatim else text.find("\n", begin)
        end = len(text) if end < 0 else end
        while begin < end:
            cut = end
            if end - begin > _LONGEST:
                space = text.rfind(" ", begin + 1, begin + _LONGEST)
                cut = begin + _LONGEST if space < 0 else space
            content = text_hash(text) if begins == DOCUMENT else 0
            part = None if words is None else words[begin:cut]
            yield Piece(text[begin:cut], begins, part, content)
            begin, begins = cut, GOES_ON
        begin, begins = end + 1, max(begins, LINE)


def word_of(where: str, text: str, segmented: str) -> np.ndarray:
    """int64[characters]: the number of the word that each character of `text` belongs to."""
    words = segmented.split()
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    spaces = _SPACES[np.minimum(codes, len(_SPACES) - 1)] & (codes < len(_SPACES))
    found, expected = "".join(words), "".join(text.split())
    if found != expected:
        shorter = min(len(found), len(expected))
        same = next((i for i in range(shorter) if found[i] != expected[i]), shorter)
        raise InputError(
            f"{where}: the words are not those of the text, from {found[same : same + 20]!r} in "
            f"place of {expected[same : same + 20]!r} on; expected the same characters, with "
            "spaces between the words"
        )
    numbers = np.zeros(len(codes), np.int64)
    numbers[~spaces] = np.repeat(np.arange(len(words)), [len(word) for word in words])
    return numbers


def starts_of(words: np.ndarray | None, offsets: list[tuple[int, int]]) -> np.ndarray:
    """bool[n]: tokens whose last character is of another word than that of the token before."""
    assert words is not None
    ends = np.array([end for _, end in offsets], np.int64)
    return np.diff(words[np.maximum(ends - 1, 0)], prepend=-1) != 0
