"""Documents as tokens on disk: what language models are pretrained on."""

import glob
import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data import cache
from jaxllm.data.document_builder import DocumentBuilder, DocumentSource, word_starts
from jaxllm.data.holdout import parts_of
from jaxllm.data.hub import hub_source
from jaxllm.data.readers import document_source, words_source
from jaxllm.data.rows import FORM, Source
from jaxllm.data.stdlib import stdlib_source
from jaxllm.errors import InputError
from jaxllm.runtime import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)
_CACHE_VERSION = 3  # raise when the same input comes to give other arrays


class Shard(NamedTuple):
    """The documents of one file, without special tokens.

    Attributes:
        tokens: int32[total].
        starts: bool[total], tokens that begin a word.
        lines: int64[m + 1]; line j is ``tokens[lines[j]:lines[j + 1]]``, of at least one token.
        documents: int64[n + 1]; document i is lines ``documents[i]`` to ``documents[i + 1]``.
        bytes: int64[n], of the text of each document in UTF-8, line ends between lines left out.
        hashes: uint64[n], `text_hash` of each document.
        key: another string whenever the arrays are others.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lines: np.ndarray
    documents: np.ndarray
    bytes: np.ndarray
    hashes: np.ndarray
    key: str

    def first(self, count: int) -> "Shard":
        """The first `count` documents."""
        return self._replace(
            documents=self.documents[: count + 1],
            bytes=self.bytes[:count],
            hashes=self.hashes[:count],
            key=f"{self.key} {count}",
        )


@dataclass(frozen=True)
class Documents:
    """All documents of a part. Its tokens count from 0 over all shards.

    Attributes:
        shards: one for each file; memory-mapped.
        corpora: int64[S], which entry of ``data.train`` or ``data.dev`` each shard belongs to.
        begins: int64[S], the number of each shard's first token.
    """

    shards: list[Shard]
    corpora: np.ndarray
    begins: np.ndarray

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(int32[n] tokens, bool[n] whether they begin a word) at int64[n] numbers of tokens."""
        tokens, starts = np.empty(len(index), np.int32), np.empty(len(index), bool)
        shard_of = np.searchsorted(self.begins, index, "right") - 1
        for number in np.unique(shard_of):
            at = np.flatnonzero(shard_of == number)
            shard, local = self.shards[number], index[at] - self.begins[number]
            tokens[at], starts[at] = shard.tokens[local], shard.starts[local]
        return tokens, starts

    @property
    def hashes(self) -> np.ndarray:
        """uint64[n], `text_hash` of each document of all shards."""
        return np.concatenate([shard.hashes for shard in self.shards])

    @property
    def rows(self) -> range:
        """The number of each document, from 1, over all shards."""
        return range(1, len(self.hashes) + 1)

    @property
    def size(self) -> int:
        """Tokens of all shards."""
        return int(self.begins[-1]) + len(self.shards[-1].tokens)

    @property
    def fingerprint(self) -> int:
        """A checksum of what these documents are."""
        digest = hashlib.sha256("\n".join(shard.key for shard in self.shards).encode())
        return int.from_bytes(digest.digest()[:4], "big")


def load_documents(
    data: DataConfig,
    split: str,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    words: str | None = None,
    verbatim: bool = False,
) -> Documents:
    """The documents of ``split`` "train" or "dev", tokenized once; `words`: see `MaskingConfig`.

    `verbatim`: with the ends of lines, so that their tokens spell all of the text, and a document
    is one line. Otherwise the lines are tokenized each for itself.

    Each file is a shard of its own in the cache, so that another file or other settings of rows and
    masks leave the rest as it is. With ``data.streaming`` reading stops at ``data.max_*_examples``
    documents, and the shard holds those alone.

    Raises:
        InputError: a file, column or row is not as it should be, there is no document, the Hub is
            out of reach, or the processes of a run do not read the same.
    """
    with processes.together():
        documents = _load(data, split, tokenizer, words, verbatim)
    processes.check_same(f"the documents of data.{split}", lambda: documents.fingerprint)
    return documents


def _load(
    data: DataConfig,
    split: str,
    tokenizer: "PreTrainedTokenizerFast",
    words: str | None,
    verbatim: bool,
) -> Documents:
    starts = word_starts(tokenizer)
    shards: list[Shard] = []
    corpora: list[int] = []
    left = data.limit(split)
    for corpus, source in _sources(data, split, words):
        builder = DocumentBuilder(data, source, tokenizer, starts, left, verbatim=verbatim)
        shard = _shard(data, split, source, builder)
        if left is not None:
            shard = shard.first(left)
            left -= len(shard.documents) - 1
        shards.append(shard)
        corpora.append(corpus)
        if left == 0:
            break
    totals = [int(shard.lines[shard.documents[-1]]) for shard in shards]
    begins = np.cumsum([0, *totals[:-1]])
    return Documents(shards, np.array(corpora), begins)


def _sources(data: DataConfig, split: str, ending: str | None) -> list[tuple[int, DocumentSource]]:
    corpora = [0]
    words: list[Source | None] = [None]
    if data.corpus is not None and (split == "train" or data.dev_fraction):
        texts = [stdlib_source(data)]
    elif data.dataset is not None:
        texts = [hub_source(data, split, labelled=False)]
    else:
        entries = data.files(split)
        if not entries:
            raise InputError(f"data.{split} is empty; expected at least one file, or data.dataset")
        files = [
            (corpus, Path(file))
            for corpus, entry in enumerate(entries)
            for file in ([entry] if Path(entry).exists() else sorted(glob.glob(entry)) or [entry])
        ]
        corpora = [corpus for corpus, _ in files]
        texts = [document_source(file, data) for _, file in files]
        words = [None if ending is None else words_source(file, ending, data) for _, file in files]
    parts = parts_of(texts, split, data, labelled=False)
    found = zip(corpora, map(DocumentSource, parts, words), strict=True)
    return [(corpus, source) for corpus, source in found if not source.text.empty]


def _shard(data: DataConfig, split: str, source: DocumentSource, builder: DocumentBuilder) -> Shard:
    entry = cache.entry_of(
        data,
        (*FORM, "text", "documents", "on_bad_row"),
        version=f"documents {_CACHE_VERSION}",
        text=source.text.fingerprint(),
        words=source.words and source.words.fingerprint(),
        tokenizer=builder.fingerprint(),
        limit=builder.limit,
        verbatim=builder.verbatim,
    )
    arrays, report = cache.load(entry, builder.run, partial(_fault, builder.vocabulary))
    dropped = "".join(f", {n} dropped: {why}" for why, n in report["dropped"].items())
    _LOG.info(
        "data.%s: %d documents, %d tokens of %s (%d empty%s)",
        *(split, report["kept"], report["tokens"], source.text.name, report["empty"], dropped),
    )
    return Shard(**arrays, key=entry.name)


def _fault(vocabulary: int, arrays: cache.Arrays, about: dict[str, Any]) -> str | None:
    """What is wrong with the arrays of a shard; see `cache.load`."""
    total, lines = len(arrays["tokens"]), len(arrays["lines"]) - 1
    count = len(arrays["documents"]) - 1
    return cache.array_fault(
        arrays,
        lengths={"starts": total, "bytes": count, "hashes": count},
        within={"tokens": (0, vocabulary), "starts": (0, 2)},
        offsets={"lines": total, "documents": lines},
    )
