"""One pass over the documents of a file: cut, tokenize in parallel, store."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.backend import Backend
from jaxllm.data.builder import text_fault
from jaxllm.data.cache import Store
from jaxllm.data.pieces import DOCUMENT, GOES_ON, Piece, pieces_of, starts_of, word_of
from jaxllm.data.rows import Row, Source
from jaxllm.data.threads import tokenized
from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CALL = 1 << 20  # characters tokenized in one call


class DocumentSource(NamedTuple):
    """Documents, and the same documents with spaces between their words, as a segmenter wrote."""

    text: Source
    words: Source | None = None


def word_starts(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray | None:
    """bool[V]: tokens that begin a word, as their spelling says; None where it does not.

    WordPiece marks the other pieces (##); byte-level BPE and SentencePiece mark the first one with
    the space before it, so that punctuation belongs to the word which it follows, as in fairseq.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    table = np.ones(vocabulary_size(tokenizer), bool)
    pieces = tokenizer.get_vocab()
    if model["type"] == "WordPiece":
        goes_on = [i for p, i in pieces.items() if p.startswith(model["continuing_subword_prefix"])]
    else:
        goes_on = [i for piece, i in pieces.items() if not piece.startswith(("Ġ", "▁"))]
        if len(goes_on) == len(pieces):
            return None
    table[goes_on] = False
    return table


class DocumentBuilder:
    """Documents of one source to a shard.

    Args:
        data: what to do with bad rows, and how many threads.
        source: the documents.
        starts: as `word_starts` gives it.
        limit: of documents; reading stops at it when streaming.
        verbatim: see `pieces_of`.

    Attributes:
        limit: documents after which reading stops; None = all are read.
        verbatim: see `pieces_of`.
        vocabulary: one more than the highest token id.
    """

    def __init__(
        self,
        data: DataConfig,
        source: DocumentSource,
        tokenizer: "PreTrainedTokenizerFast",
        starts: np.ndarray | None,
        limit: int | None,
        *,
        verbatim: bool = False,
    ):
        self._data, self._source, self._starts = data, source, starts
        self.verbatim = verbatim
        self.limit = limit if data.streaming else None
        self.vocabulary = vocabulary_size(tokenizer)
        self._backend = Backend(tokenizer)
        self._empty = 0
        self._dropped: dict[str, int] = {}

    def fingerprint(self) -> str:
        """See `Backend.fingerprint`."""
        return self._backend.fingerprint()

    def run(self, store: Store) -> dict[str, Any]:
        """Appends the arrays of a `Shard` to `store`; gives a report.

        In memory are the document that is read and the few calls of the tokenizer that are under
        way.

        Raises:
            InputError: a row that cannot be used where that stops the run, words that are not
                those of the text, or no document.
        """
        writer = _Writer(store)
        tokenized(self._calls(), self._encode, writer.add, workers=self._data.workers)
        writer.close()
        if not writer.documents:
            raise InputError(
                f"{self._source.text.name}: there is no document with a token "
                f"({self._empty + writer.empty} are empty, {sum(self._dropped.values())} dropped)"
            )
        return {
            "kept": writer.documents,
            "empty": self._empty + writer.empty,
            "tokens": writer.tokens,
            "dropped": self._dropped,
        }

    def _calls(self) -> Iterator[list[Piece]]:
        pieces: list[Piece] = []
        size = 0
        for text, words in self._documents():
            for piece in pieces_of(text, words, verbatim=self.verbatim):
                pieces.append(piece)
                size += len(piece.text) + 1
                if size >= _CALL:
                    yield pieces
                    pieces, size = [], 0
        if pieces:
            yield pieces

    def _documents(self) -> Iterator[tuple[str, np.ndarray | None]]:
        count = 0
        for row, words in self._rows():
            if row.fault is None and _blank(row.text):
                self._empty += 1
                continue
            fault = row.fault or (words and words.fault) or text_fault(row.text, "text")
            file = row.file and f" ({row.file})"
            where = f"{self._source.text.name}: row {row.number}{file}"
            if fault is None:
                yield (
                    row.text,
                    None if words is None else word_of(where, row.text, words.text or ""),
                )
                count += 1
                if count == self.limit:
                    return
            elif self._data.on_bad_row == "error":
                raise InputError(f"{where}: {fault}; correct it, or set data.on_bad_row: drop")
            else:
                self._dropped[fault] = self._dropped.get(fault, 0) + 1

    def _rows(self) -> Iterator[tuple[Row, Row | None]]:
        text, words = self._source
        if words is None:
            yield from ((row, None) for row in text.rows() if not row.elsewhere)
            return
        for row, segmented in zip_longest(text.rows(), words.rows()):
            if row is None or segmented is None:
                longer, shorter = (text, words) if segmented is None else (words, text)
                raise InputError(
                    f"{shorter.name}: ends before {longer.name} (row {(row or segmented).number}); "
                    "expected the same documents in both"
                )
            if not row.elsewhere:
                yield row, segmented

    def _encode(self, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, whether they begin a word, tokens of each piece)."""
        texts = [piece.text for piece in pieces]
        segmented = self._source.words is not None
        encode = self._backend.encode_batch if segmented else self._backend.encode_batch_fast
        encodings = encode(texts, specials=False)
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        tokens = np.fromiter(ids, np.int32, int(counts.sum()))
        if segmented:
            pairs = zip(pieces, encodings, strict=True)
            starts = np.concatenate([starts_of(piece.words, e.offsets) for piece, e in pairs])
        elif self._starts is None:
            starts = np.ones(len(tokens), bool)
        else:
            starts = self._starts[tokens]
        ends = np.cumsum(counts)
        starts[(ends - counts)[counts > 0]] = True  # pieces are cut between words
        return tokens, starts, counts


@dataclass
class _Writer:
    """Puts tokens into a store, and notes where lines and documents end."""

    store: Store
    tokens: int = 0
    lines: int = 0
    documents: int = 0
    empty: int = -1  # the end of what is before the first document counts as one
    _line_begin: int = 0
    _document_begin: int = 0
    _hash: int = 0  # of the document that is being added
    _bytes: int = 0  # likewise
    _ends: dict[str, list[int]] = field(
        default_factory=lambda: {"lines": [], "documents": [], "bytes": [], "hashes": []}
    )

    def __post_init__(self) -> None:
        for name, dtype in (("tokens", np.int32), ("starts", bool)):
            self.store.append(name, np.zeros(0, dtype))
        for name in ("lines", "documents"):
            self.store.append(name, np.zeros(1, np.int64))

    def add(self, pieces: list[Piece], encoded: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        tokens, starts, counts = encoded
        for piece, count in zip(pieces, counts.tolist(), strict=True):
            if piece.begins != GOES_ON:
                self._end(piece.begins == DOCUMENT)
            if piece.begins == DOCUMENT:
                self._hash, self._bytes = piece.hash, 0
            self.tokens += count
            self._bytes += len(piece.text.encode())
        self.store.append("tokens", tokens)
        self.store.append("starts", starts)
        self._flush()

    def close(self) -> None:
        self._end(True)
        self._flush()

    def _end(self, document: bool) -> None:
        """Ends the line, and the document, unless they have no token."""
        if self.tokens > self._line_begin:
            self._line_begin = self.tokens
            self.lines += 1
            self._ends["lines"].append(self.tokens)
        if document and self.lines > self._document_begin:
            self._document_begin = self.lines
            self.documents += 1
            self._ends["documents"].append(self.lines)
            self._ends["bytes"].append(self._bytes)
            self._ends["hashes"].append(self._hash)
        elif document:
            self.empty += 1

    def _flush(self) -> None:
        for name, values in self._ends.items():
            self.store.append(name, np.array(values, np.uint64 if name == "hashes" else np.int64))
            values.clear()


def _blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())
