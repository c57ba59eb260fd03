"""Questions with windows over their contexts, as tokens: what extractive question answering packs.

A window is `[CLS] question [SEP] part of the context [SEP]`, or what the tokenizer makes of a pair.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.config.fields import QAConfig
from jaxllm.data.backend import Backend
from jaxllm.data.corpus import Examples, ReadReport
from jaxllm.data.long_texts import Shortener
from jaxllm.data.rows import chunk_of
from jaxllm.data.squad import Faults, Question, Questions, aligned
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHORT = 32  # tokens: rows have place for windows that are this long on average
UNKNOWN = (-1, -1)  # the span of a question whose answers are not aligned


@dataclass(frozen=True)
class Windows(Examples):
    """n windows; `labels` int32[n, 2] are the answer's first and last token within the window.

    The first token stands for no answer: it is the label where a window does not hold the answer.
    Labels of -1 are unknown.

    Attributes:
        question: int64[n], index of the window's question, rising.
        begin, end: int32[n], the part of the window that is context: its first token, and the end.
        source: int64[n], the row of `spans` that belongs to token `begin`.
        spans: int32[m, 2], each context token's first character and the end.
        cut: int64[k], indices of the questions that were cut.
    """

    question: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    source: np.ndarray
    spans: np.ndarray
    cut: np.ndarray

    def slots(self, row_length: int, *, packing: bool) -> int:
        """P, the windows that a row holds at most."""
        return max(1, row_length // _SHORT) if packing else 1

    def of(self, question: int) -> "Windows":
        """The windows of one question, which is then the first; of the spans all are kept."""
        low, high = np.searchsorted(self.question, [question, question + 1])
        begin, end = self.offsets[[low, high]]
        own = slice(low, high)
        assert self.labels is not None
        return replace(
            self,
            tokens=self.tokens[begin:end],
            type_ids=self.type_ids[begin:end],
            offsets=self.offsets[low : high + 1] - begin,
            labels=self.labels[own],
            rows=self.rows[own],
            question=self.question[own] - question,
            begin=self.begin[own],
            end=self.end[own],
            source=self.source[own],
            cut=self.cut[self.cut == question] - question,
        )


class WindowEncoder:
    """Questions and contexts to windows of at most `max_length` tokens.

    Raises:
        InputError: `max_length` leaves no room for the context, or the tokenizer puts no token
            before a pair.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_length: int, qa: QAConfig):
        self._backend = Backend(tokenizer)
        self._qa = qa
        # One token more than are kept: whether a question is cut is told.
        self._shortened = Shortener(self._backend, qa.max_question_length + 1)
        self._frame = _Frame(self._backend.encode("a", "a"))
        self._room = max_length - self._frame.size  # for a question and its part of the context
        if self._room - qa.max_question_length <= qa.doc_stride:
            least = self._frame.size + qa.max_question_length + qa.doc_stride + 1
            raise InputError(
                f"data.max_length={max_length} leaves no room for contexts beside "
                f"{self._frame.size} special tokens, qa.max_question_length="
                f"{qa.max_question_length} and qa.doc_stride={qa.doc_stride}; expected at least "
                f"{least}"
            )

    def fingerprint(self) -> str:
        """See `Backend.fingerprint`."""
        return self._backend.fingerprint()

    def windows(self, read: Questions, faults: Faults) -> tuple[Windows, Questions]:
        """The windows of all questions, and the questions that have any; the others are faults."""
        pairs = zip(read.contexts, self._encode(read.contexts), strict=True)
        contexts = [_Text(text, encoding) for text, encoding in pairs]
        starts = np.cumsum([0, *(len(context.ids) for context in contexts)])
        out = _Columns()
        kept: list[Question] = []
        cut: list[int] = []
        texts = (self._shortened(question.question) for question in read.questions)
        for question, encoding in zip(read.questions, self._encode(texts), strict=True):
            ids, context = encoding.ids, contexts[question.context]
            if not ids or not len(context.ids):
                reason = f"{'context' if ids else 'question'} without a token"
                faults.add(reason, question)
                continue
            if len(ids) > self._qa.max_question_length:
                ids = ids[: self._qa.max_question_length]
                cut.append(len(kept))
            label = context.label(question, read.contexts[question.context])
            for first, last in self._cuts(len(ids), len(context.ids)):
                tokens, types, begin = self._frame.around(ids, context.ids[first:last])
                out.tokens.append(tokens)
                out.types.append(types)
                out.labels.append(_within(label, first, last, begin))
                out.rows.append(question.number)
                out.question.append(len(kept))
                out.begin.append(begin)
                out.end.append(begin + last - first)
                out.source.append(starts[question.context] + first)
            kept.append(question)
        spans = np.concatenate([np.zeros((0, 2), np.int32), *(text.spans for text in contexts)])
        return out.windows(spans, cut), Questions(kept, read.contexts)

    def _encode(self, texts: Iterable[str]) -> Iterable[Any]:
        texts = iter(texts)
        while chunk := chunk_of(texts):
            yield from self._backend.encode_batch(chunk, specials=False)

    def _cuts(self, question: int, context: int) -> Iterable[tuple[int, int]]:
        """First token and end of each part of a context; as the `stride` of tokenizers has it."""
        room = self._room - question
        for first in range(0, context, room - self._qa.doc_stride):
            yield first, min(first + room, context)
            if first + room >= context:
                return


class _Frame:
    """The special tokens that a tokenizer puts around and between two texts."""

    def __init__(self, pair: Any):
        part = [-1 if s is None else s for s in pair.sequence_ids]
        one, two = part.index(0), part.index(1)
        end = len(part) - part[::-1].index(1)
        if one == 0:
            raise InputError(
                "the tokenizer puts no special token before a pair of texts, so nothing can stand "
                "for no answer; expected one like BERT's, with [CLS]"
            )
        middle = one + part.count(0)
        ids, types = np.array(pair.ids, np.int32), np.array(pair.type_ids, np.uint8)
        self._ids = ids[:one], ids[middle:two], ids[end:]
        self._types = types[:one], types[middle:two], types[end:]
        self._text_types = types[one], types[two]
        self.size = sum(map(len, self._ids))

    def around(
        self, question: Sequence[int], context: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """(tokens, type ids, where the context begins) of a window."""
        before, between, after = self._ids
        tokens = np.concatenate([before, np.array(question, np.int32), between, context, after])
        counts = len(question), len(context)
        of_question, of_context = map(np.repeat, self._text_types, counts)
        one, two, three = self._types
        types = np.concatenate([one, of_question, two, of_context, three])
        return tokens, types, len(before) + len(question) + len(between)


class _Text:
    """A context's tokens and where they stand."""

    def __init__(self, text: str, encoding: Any):
        self.ids = np.array(encoding.ids, np.int32)
        self.spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        # Where spaces belong to the token behind them, they are not in the answer; a token may be
        # nothing but space.
        spaces = [i for i, character in enumerate(text) if character.isspace()]
        follows = np.arange(len(text) + 1)  # the first character from here on that is no space
        for i in reversed(spaces):
            follows[i] = follows[i + 1]
        begins, ends = self.spans.T
        self.spans[:, 0] = np.where(follows[begins] < ends, follows[begins], begins)

    def label(self, question: Question, context: str) -> tuple[int, int] | None:
        """The tokens that cover the answer; None = no answer, UNKNOWN = none is aligned."""
        if not question.answers:
            return None
        span = aligned(question.answers, context)
        if span is None:
            return UNKNOWN
        start = int(np.searchsorted(self.spans[:, 1], span[0], side="right"))
        end = int(np.searchsorted(self.spans[:, 0], span[1], side="left")) - 1
        return (start, end) if start <= end else UNKNOWN


def _within(label: tuple[int, int] | None, first: int, last: int, begin: int) -> tuple[int, int]:
    """The label in a window of the context's tokens from `first` to `last`."""
    if label == UNKNOWN:
        return UNKNOWN
    if label is None or label[0] < first or label[1] >= last:
        return 0, 0
    return label[0] - first + begin, label[1] - first + begin


@dataclass
class _Columns:
    """The arrays of Windows while they grow."""

    tokens: list[np.ndarray] = field(default_factory=list)
    types: list[np.ndarray] = field(default_factory=list)
    labels: list[tuple[int, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    question: list[int] = field(default_factory=list)
    begin: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)

    def windows(self, spans: np.ndarray, cut: list[int]) -> Windows:
        return Windows(
            tokens=np.concatenate([np.zeros(0, np.int32), *self.tokens]),
            type_ids=np.concatenate([np.zeros(0, np.uint8), *self.types]),
            offsets=np.cumsum([0, *map(len, self.tokens)], dtype=np.int64),
            labels=np.array(self.labels, np.int32).reshape(-1, 2),
            rows=np.array(self.rows, np.int64),
            report=ReadReport(),
            question=np.array(self.question, np.int64),
            begin=np.array(self.begin, np.int32),
            end=np.array(self.end, np.int32),
            source=np.array(self.source, np.int64),
            spans=spans,
            cut=np.array(cut, np.int64),
        )
