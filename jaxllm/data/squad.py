"""Questions on contexts, as SQuAD 1.1, SQuAD 2.0 and CMRC 2018 have them: JSON files or the Hub."""

import gzip
import hashlib
import itertools
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.config_fields import DataConfig
from jaxllm.data.builder import text_fault
from jaxllm.data.hub import load_split, records
from jaxllm.errors import InputError

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # questions of each kind in a message

Paragraph = tuple[str, list[dict[str, Any]]]  # a context, and the fields of its questions


class Source(NamedTuple):
    """A file, or a split of a data set of the Hub.

    name: in messages.
    fingerprint: gives a string that is another one whenever the content is.
    """

    name: str
    fingerprint: Callable[[], str]
    paragraphs: Iterable[Paragraph]


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
    def unanswerable(self) -> bool:
        """Whether some question has no answer, as in SQuAD 2.0."""
        return any(not question.answers for question in self.questions)


@dataclass
class Faults:
    """Questions that cannot be used, by reason; `finish` refuses or counts them."""

    split: str
    found: dict[str, list[Question]] = field(default_factory=dict)

    def add(self, reason: str, question: Question) -> None:
        """Notes a question."""
        self.found.setdefault(reason, []).append(question)

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
    sources: Iterable[Source], *, faults: Faults, limit: int | None, only_aligned: bool
) -> Questions:
    """The first `limit` questions of `sources` that are as they should be.

    An answer must stand in its context at its `answer_start`. With `only_aligned` a question none
    of whose answers does (in CMRC 2018 -1 is one that was never aligned) is a fault; without it is
    kept, because predictions are compared with texts.

    Raises:
        InputError: a source that cannot be read or has another schema.
    """
    questions: list[Question] = []
    contexts: list[str] = []
    seen: set[str] = set()
    number = 0
    for source in sources:
        for context, rows in source.paragraphs:
            contexts.append(context)
            for row in rows:
                if limit is not None and len(questions) >= limit:
                    return Questions(questions, contexts)
                number += 1
                question = Question(
                    file=source.name, number=number, context=len(contexts) - 1, **row
                )
                fault = _fault(question, context, seen, only_aligned)
                if fault is None:
                    questions.append(question)
                    seen.add(question.id)
                else:
                    faults.add(fault, question)
    return Questions(questions, contexts)


def squad_sources(data: DataConfig, split: str) -> list[Source]:
    """The files of a split, each also .gz, or its part of a data set of the Hub."""
    if data.dataset is not None:
        where, dataset, fingerprint = load_split(data, split)
        return [Source(where, lambda: fingerprint, _hub_paragraphs(where, dataset))]
    files = data.train if split == "train" else data.dev
    if not files:
        raise InputError(f"data.{split}: found no files, expected SQuAD's JSON, or data.dataset")
    return [Source(file, partial(_sha256, file), _paragraphs(file)) for file in files]


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
        return "answer that does not stand at its answer_start"
    return None


def _sha256(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}") from None


def _paragraphs(file: str) -> Iterator[Paragraph]:
    """Each context with the fields of its questions."""
    for a, article in enumerate(_get(_load(file), "data", list, file), 1):
        where = f"{file}, article {a}"
        for p, paragraph in enumerate(_get(article, "paragraphs", list, where), 1):
            at = f"{where}, paragraph {p}"
            context = _get(paragraph, "context", str, at)
            rows = _get(paragraph, "qas", list, at)
            yield context, [_row(row, f"{at}, question {q}") for q, row in enumerate(rows, 1)]


def _hub_paragraphs(where: str, dataset: Any) -> Iterator[Paragraph]:
    """As the Hub has SQuAD: a row a question, `answers` as a list of texts and one of places."""
    rows = ((record, f"{where}, row {number}") for number, record in records(where, dataset))
    for context, group in itertools.groupby(rows, lambda row: _get(row[0], "context", str, row[1])):
        yield context, [_hub_row(record, at) for record, at in group]


def _hub_row(record: Any, where: str) -> dict[str, Any]:
    answers = _get(record, "answers", dict, where)
    columns = (_get(answers, key, list, where) for key in ("text", "answer_start"))
    pairs = [
        dict(zip(("text", "answer_start"), pair, strict=True))
        for pair in zip(*columns, strict=True)
    ]
    return _row(record | {"answers": pairs}, where)


def _row(row: Any, where: str) -> dict[str, Any]:
    question, name = (_get(row, key, str, where) for key in ("question", "id"))
    answers = [] if row.get("is_impossible") else _get(row, "answers", list, where)
    texts = tuple(
        (_get(answer, "text", str, where), _get(answer, "answer_start", int, where))
        for answer in answers
    )
    return {"question": question, "id": name, "answers": texts}


def _get(parent: Any, key: str, kind: type, where: str) -> Any:
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        found = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise InputError(
            f"{where}: found {found} as {key!r}, expected {kind.__name__}: a file must have "
            "SQuAD's schema, data > paragraphs > context and qas > id, question, answers > text, "
            "answer_start; a data set of the Hub the columns id, context, question, answers"
        )
    return value


def _load(file: str) -> Any:
    path = Path(file)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return json.loads(stream.read())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON in UTF-8: {error}; expected SQuAD's JSON") from None
