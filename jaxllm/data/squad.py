"""Questions on contexts, as SQuAD 1.1, SQuAD 2.0 and CMRC 2018 have them: JSON files or the Hub."""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.builder import text_fault
from jaxllm.data.holdout import Key, hold_out
from jaxllm.data.hub import load_split, records
from jaxllm.data.lines import beyond, sha256, too_long
from jaxllm.data.rows import text_hash
from jaxllm.data.squad_records import Asked, asked_in, records_of
from jaxllm.errors import InputError

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # questions of each kind in a message


class Source(NamedTuple):
    """A file, or a split of a data set of the Hub.

    name: in messages.
    fingerprint: gives a string that is another one whenever the content is.
    questions: gives the questions; None: one of the other part, see `holdout`.
    """

    name: str
    fingerprint: Callable[[], str]
    questions: Callable[[], Iterator[Asked | None]]


@dataclass(frozen=True)
class Question:
    """A question on a context.

    Attributes:
        id: of the question, in the file and in the predictions.
        file, number: where it is; numbers are from 1, through all files.
        context: index of its context.
        answers: (text, offset of its first character in the context); none = unanswerable.
    """

    id: str
    file: str
    number: int
    question: str
    context: int
    answers: tuple[tuple[str, int], ...]


class Questions(NamedTuple):
    """Questions, and the contexts that they share."""

    questions: list[Question]
    contexts: list[str]

    @property
    def rows(self) -> list[str]:
        """The id of each question."""
        return [question.id for question in self.questions]

    @property
    def hashes(self) -> np.ndarray:
        """uint64[n], `text_hash` of each question with its context."""
        contexts = [str(text_hash(context)) for context in self.contexts]
        pairs = ((question.question, contexts[question.context]) for question in self.questions)
        return np.array([text_hash(*pair) for pair in pairs], np.uint64)

    @property
    def unanswerable(self) -> bool:
        """Whether some question has no answer, as in SQuAD 2.0."""
        return any(not question.answers for question in self.questions)


@dataclass
class Faults:
    """Questions that cannot be used, by reason, which `finish` refuses or counts.

    odd: questions that can be used, by what is to be told of them.
    """

    split: str
    found: dict[str, list[Question]] = field(default_factory=dict)
    odd: dict[str, list[Question]] = field(default_factory=dict)

    def add(self, reason: str, question: Question) -> None:
        """Notes a question."""
        self.found.setdefault(reason, []).append(question)

    @property
    def remarks(self) -> list[str]:
        """What is to be told of questions that are used."""
        return [f"{len(qs)} × {remark} ({_first(qs)})" for remark, qs in self.odd.items()]

    def finish(self, kept: int, on_bad_row: str) -> dict[str, int]:
        """How many there are of each reason, beside those `kept`.

        Raises:
            InputError: there is one and `on_bad_row` is "error", or none was kept.
        """
        counts = {reason: len(questions) for reason, questions in self.found.items()}
        bad = sum(counts.values())
        told = " | ".join(
            f"{len(questions)} × {reason} ({_first(questions)})"
            for reason, questions in self.found.items()
        )
        if bad and on_bad_row == "error":
            raise InputError(
                f"data.{self.split}: {bad} of {kept + bad} questions cannot be used: {told}. "
                "Correct them, or set data.on_bad_row: drop"
            )
        if not kept:
            raise InputError(
                f"data.{self.split}: no question is left: {told or 'found none'}; expected at "
                "least one that can be used: correct the file, or give another"
            )
        if bad:
            _LOG.warning("data.%s: dropped %d questions: %s", self.split, bad, told)
        return counts


def read_squad(
    sources: Iterable[Source],
    data: DataConfig,
    *,
    faults: Faults,
    limit: int | None,
    only_aligned: bool,
) -> Questions:
    """The first `limit` questions of `sources` that are as they should be.

    An answer must stand in its context at its `answer_start`. With `only_aligned` a question none
    of whose answers does (in CMRC 2018 -1 is one that was never aligned) is a fault; without it is
    kept, because predictions are compared with texts. A question without an id gets its number.

    Raises:
        InputError: a source that cannot be read or has another schema.
    """
    questions: list[Question] = []
    contexts: list[str] = []
    seen: set[str] = set()
    number = 0
    for source in sources:
        for asked in source.questions():
            if limit is not None and len(questions) >= limit:
                return Questions(questions, contexts)
            number += 1
            if asked is None:
                continue
            if not contexts or contexts[-1] != asked.context:
                contexts.append(asked.context)
            question = Question(
                id=f"question-{number}" if asked.id is None else asked.id,
                file=source.name,
                number=number,
                question=asked.question,
                context=len(contexts) - 1,
                answers=asked.answers,
            )
            fault = _fault(question, asked.context, seen, only_aligned)
            if beyond([asked.context, asked.question], data.max_row_bytes):
                fault, contexts[-1] = too_long(data), ""
            if fault is not None:
                faults.add(fault, question)
                continue
            questions.append(question)
            seen.add(question.id)
            if asked.remark is not None:
                faults.odd.setdefault(asked.remark, []).append(question)
    return Questions(questions, contexts)


def squad_sources(data: DataConfig, split: str) -> list[Source]:
    """The files of a split, each also .gz, or its part of a data set of the Hub."""
    if data.dataset is not None:
        where, dataset, fingerprint = load_split(data, split)

        def asked() -> Iterator[Asked]:
            rows = records(where, dataset)
            return asked_in((f"{where}, row {number}", row) for number, row in rows)

        sources = [Source(where, lambda: fingerprint, asked)]
    else:
        files = data.files(split)
        if not files:
            raise InputError(
                f"data.{split}: found no files, expected SQuAD's JSON, or data.dataset"
            )
        sources = [
            Source(file, partial(sha256, Path(file)), partial(_asked, file, data)) for file in files
        ]
    return _parts_of(sources, split, data) if data.dev_fraction else sources


def _asked(file: str, data: DataConfig) -> Iterator[Asked]:
    return asked_in(records_of(file, data))


def _parts_of(sources: list[Source], split: str, data: DataConfig) -> list[Source]:
    """The sources of data.train as those of `split`: all questions on a context are in one part."""

    def key(asked: Asked | None) -> Key | None:
        if asked is None or text_fault(asked.context, "context"):
            return None
        return text_hash(asked.context), 0

    def keys(source: Source) -> Iterator[Key | None]:
        return map(key, source.questions())

    fingerprints = [source.fingerprint() for source in sources]
    held = hold_out([partial(keys, source) for source in sources], fingerprints, data)

    def part(source: Source) -> Iterator[Asked | None]:
        for asked in source.questions():
            yield None if held.is_elsewhere(key(asked), split) else asked

    return [
        Source(source.name, partial(held.fingerprint, own, split), partial(part, source))
        for source, own in zip(sources, fingerprints, strict=True)
    ]


def _first(questions: list[Question]) -> str:
    """The ids of the first questions, by file."""
    files: dict[str, list[str]] = {}
    for question in questions[:_SHOWN]:
        files.setdefault(question.file, []).append(repr(question.id))
    told = "; ".join(f"{file}: {', '.join(ids)}" for file, ids in files.items())
    more = len(questions) - _SHOWN
    return f"{told} and {more} more" if more > 0 else told


def aligned(answers: Sequence[tuple[str, int]], context: str) -> tuple[int, int] | None:
    """Where the first answer stands that is at its offset: its first character, and the end."""
    for text, start in answers:
        if start >= 0 and text and context.startswith(text, start):
            return start, start + len(text)
    return None


def _fault(question: Question, context: str, seen: set[str], only_aligned: bool) -> str | None:
    fault = text_fault(context, "context") or text_fault(question.question, "question")
    if fault is not None:
        return fault
    if question.id in seen:
        return "id that another question has"
    if only_aligned and question.answers and aligned(question.answers, context) is None:
        texts = [text for text, _ in question.answers]
        if any(text in context or _composed(text) not in _composed(context) for text in texts):
            return "answer that does not stand at its answer_start"
        return "answer in another Unicode form than its context"
    return None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
