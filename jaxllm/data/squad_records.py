"""The questions in a file of SQuAD's schema, or of one that its like has, one after the other.

SQuAD has `data > paragraphs > context, qas`. Files also come as the list of its articles or
paragraphs alone, and with a row a question, as `datasets` has them: a list, or an object a line.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.config.fields import DataConfig
from jaxllm.data.json_stream import JsonText
from jaxllm.data.lines import open_text, unreadable
from jaxllm.errors import InputError

_PARTS = {"data": "article", "paragraphs": "paragraph"}  # arrays of objects: what one is called

Record = tuple[str, Any]  # where it is, for messages, and a paragraph or a row


class Asked(NamedTuple):
    """A question.

    Attributes:
        id: None where it has none.
        answers: (text, offset of its first character in the context); none = unanswerable.
        remark: what is to be told of it.
    """

    context: str
    question: str
    id: str | None
    answers: tuple[tuple[str, int], ...]
    remark: str | None = None


def records_of(file: str, data: DataConfig) -> Iterator[Record]:
    """The paragraphs, or rows, of a file.

    Raises:
        InputError: the file cannot be read, is no JSON, or has one of more than
            ``data.max_row_bytes``.
    """
    path = Path(file)
    try:
        with open_text(path, data.encoding) as text:
            json = JsonText(text, data.max_row_bytes)
            while json.peek():
                yield from _records(json, file)
    except (UnicodeError, OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, data.encoding) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}; expected SQuAD's JSON") from None


def asked_in(records: Iterable[Record]) -> Iterator[Asked]:
    """The questions of paragraphs or rows.

    Raises:
        InputError: one that is not as SQuAD or `datasets` has it.
    """
    for where, record in records:
        context = _get(record, "context", str, where)
        if "qas" not in record:
            yield _asked(context, record, where)
            continue
        for number, row in enumerate(_get(record, "qas", list, where), 1):
            yield _asked(context, row, f"{where}, question {number}")


def _records(json: JsonText, where: str) -> Iterator[Record]:
    """The objects in what comes next that have no articles or paragraphs in them."""
    if json.peek() == "[":
        for number, _ in enumerate(json.members("[", "]"), 1):
            yield from _records(json, f"{where}, item {number}")
        return
    if json.peek() != "{":
        raise json.error("expected an object, or a list of objects")
    record: dict[Any, Any] | None = {}
    for _ in json.members("{", "}"):
        key = json.value()
        if not json.take(":"):
            raise json.error("expected : behind a key")
        if key in _PARTS and json.peek() == "[":
            record = None
            for number, _ in enumerate(json.members("[", "]"), 1):
                yield from _records(json, f"{where}, {_PARTS[key]} {number}")
        else:
            value = json.value()
            if record is not None:
                record[key] = value
    if record is not None:
        yield where, record


def _asked(context: str, row: Any, where: str) -> Asked:
    question = _get(row, "question", str, where)
    name = row.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, int)):
        name = _get(row, "id", str, where)
    impossible = row.get("is_impossible")
    if impossible is not None:
        _get(row, "is_impossible", bool, where)
    answers = () if impossible and row.get("answers") is None else _answers(row, where)
    remark = None
    if impossible and any(text for text, _ in answers):
        remark = "is_impossible together with answers, which are left out"
    elif impossible is False and not answers:
        remark = "is_impossible: false without an answer, taken as a question without an answer"
    return Asked(
        context,
        question,
        str(name) if name not in (None, "") else None,
        () if impossible else answers,
        remark,
    )


def _answers(row: Any, where: str) -> tuple[tuple[str, int], ...]:
    """Of a list of objects, or of an object of lists, as `datasets` has them."""
    answers = row.get("answers")
    if isinstance(answers, dict):
        texts, starts = (_get(answers, key, list, where) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise InputError(
                f"{where}: found {len(texts)} texts and {len(starts)} of answer_start in "
                "'answers', expected as many"
            )
        answers = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
        row = {"answers": answers}
    return tuple(
        (_get(answer, "text", str, where), _get(answer, "answer_start", int, where))
        for answer in _get(row, "answers", list, where)
    )


def _get(parent: Any, key: str, kind: type, where: str) -> Any:
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        found = "nothing" if value is None else type(value).__name__
        if isinstance(value, str | int | float):
            found += f" {str(value)[:40]!r}"
        expected = "true or false" if kind is bool else kind.__name__
        raise InputError(
            f"{where}: found {found} as {key!r}, expected {expected}: a file must have SQuAD's "
            "schema, data > paragraphs > context and qas > id, question, answers > text, "
            "answer_start, or rows of id, context, question, answers, as a data set of the Hub "
            "has"
        )
    return value
