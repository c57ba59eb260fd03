"""A row of text as a model takes it: `InputFormat`, kept beside the weights, and its columns."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxllm.config.fields import Config, DataConfig, ModelConfig, QAConfig
from jaxllm.config.task_checks import check_qa
from jaxllm.errors import InputError
from jaxllm.files import read_json, write_atomic
from jaxllm.pretrained import sentence_transformers
from jaxllm.pretrained.saving import INPUT_FILE

_WAY_OUT = "export the model again, or remove the file to read the columns text and text_pair"
_NAMES = {  # fields of which a configuration knows all values
    "task": get_type_hints(ModelConfig)["task"],
    "tags": get_type_hints(ModelConfig)["tags"],
    "truncation": get_type_hints(DataConfig)["truncation"],
}
LONGEST_LINE = 1 << 24  # bytes of a line of JSON; a longer one is an error
WORDS = "tokens"  # the column of a text that is divided into words

# What a model of transformers takes, by what the name of its class ends with.
_ELSEWHERE: dict[str, dict[str, Any]] = {
    "ForMaskedLM": {"task": "masked-lm"},
    "ForPreTraining": {"task": "masked-lm"},
    "ForCausalLM": {"task": "causal-lm"},
    "LMHeadModel": {"task": "causal-lm"},
    "ForTokenClassification": {"task": "token-classification"},
    "ForMultipleChoice": {"task": "multiple-choice"},
    "ForQuestionAnswering": {
        "task": "question-answering",
        "text": "question",
        "text_pair": "context",
    },
    "": {"text_pair": "text_pair", "pair_optional": True},  # a classifier
}


@dataclass(frozen=True)
class InputFormat:
    """How a row becomes tokens, so that prediction reads rows as training did.

    task: what answers; model.task of the run that wrote it.
    text, text_pair: names of the row's text columns; text_pair null = single texts.
    choices: names of the columns of choices, or of one with a list.
    pair_optional: a row may lack its second text.
    max_length: tokens of a row, special tokens included.
    truncation: `right` or `left` cuts a longer row there; with `error` or `drop` it is an error.
    tags: of token classification: see ModelConfig.
    qa: of question answering: the fields of QAConfig, and `nullable`, whether a question may have
        no answer.
    """

    task: str = "sequence-classification"
    text: str = "text"
    text_pair: str | None = None
    pair_optional: bool = False
    max_length: int = 512
    truncation: str = "right"
    qa: dict[str, Any] | None = None
    choices: list[str] | None = None
    tags: str = "auto"

    @classmethod
    def of(cls, config: Config) -> "InputFormat":
        """The format of a run's rows."""
        data, task = config.data, config.model.task
        return cls(
            task=task,
            text=data.text,
            text_pair=data.text_pair,
            max_length=data.max_length,
            truncation=data.truncation,
            choices=data.choices,
        )

    def save(self, directory: Path) -> None:
        """Writes `jaxllm.json` into a model directory."""
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        write_atomic(directory / INPUT_FILE, content)

    @classmethod
    def load(
        cls, directory: Path, *, max_length: int, architectures: Sequence[str] = ()
    ) -> "InputFormat":
        """Reads `jaxllm.json`. Without it the model was trained elsewhere: one that comes with
        sentence-transformers' files answers `text` with its embedding, another what its class is
        for: masks and entities in `text`, a `question` on a `context`, one of `choices`; any other
        is a classifier of `text` and `text_pair`.

        `max_length`: of the longest row that model and tokenizer take.
        `architectures`: transformers' classes that its config names.

        Raises:
            InputError: the file is not what `save` writes.
        """
        path = directory / INPUT_FILE
        if not path.is_file():
            if (found := sentence_transformers.read(directory)) is not None:
                own = found[1].max_length or max_length
                return cls("sentence-embedding", max_length=min(own, max_length))
            name = architectures[0] if architectures else ""
            form = next(form for ending, form in _ELSEWHERE.items() if name.endswith(ending))
            return cls(**form, max_length=max_length)
        expected = "a description of the model's input"
        values = read_json(path, dict, expected, _WAY_OUT)
        try:
            _check(values, get_type_hints(cls) | _NAMES)
            read = cls(**values)
            read.qa_settings()
            asks = read.task == "question-answering"
            if asks and (read.text_pair is None or read.pair_optional):
                raise InputError("text_pair: found none, expected the column of the context")
            if read.max_length < 1:
                raise InputError(f"max_length: found {read.max_length}, expected at least 1")
        except InputError as error:
            raise InputError(f"{path}: not {expected} ({error}); {_WAY_OUT}") from None
        return read

    def qa_settings(self) -> tuple[QAConfig, bool]:
        """`qa` as it is in a configuration, and whether a question may have no answer.

        Raises:
            InputError: a value that cannot be.
        """
        values = dict(self.qa or {})
        nullable = values.pop("nullable", True)
        _check(
            {"nullable": nullable, **values}, get_type_hints(QAConfig) | {"nullable": bool}, "qa."
        )
        qa = QAConfig(**values)
        check_qa(qa)
        return qa, nullable


def _check(values: dict[str, Any], hints: dict[str, Any], prefix: str = "") -> None:
    """Refuses keys that are not in `hints`, and values of another type than they say."""
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"found the key {prefix}{name}, expected one of {', '.join(hints)}")
        if not _fits(value, hints[name]):
            hint = hints[name]
            expected = hint.__name__ if isinstance(hint, type) else str(hint).split("Literal")[-1]
            raise InputError(f"{prefix}{name}: found {value!r}, expected {expected}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is UnionType:
        return any(_fits(value, one) for one in arguments)
    if origin is list:
        return (
            isinstance(value, list) and bool(value) and all(_fits(x, arguments[0]) for x in value)
        )
    if hint is float and type(value) is int:
        return True
    return type(value) is (origin or hint)  # true is no number


_KINDS = (
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (Mapping, "an object"),
    ((list, tuple), "a list"),
)


class RowError(ValueError):
    """A row cannot be answered; the message stands in its place in the output."""


def read_line(line: bytes) -> Any:
    """The row of a line of JSON.

    Raises:
        RowError: what is wrong with the line.
    """
    if len(line) > LONGEST_LINE:
        raise RowError(f"the line has more than {LONGEST_LINE:,} bytes")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
    except RecursionError:
        raise RowError("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise RowError(f"not JSON: {error}" if line.strip() else "the line is empty") from None


def columns(row: Any, form: InputFormat) -> Mapping[str, Any]:
    """The columns of a row: an object with them, the text alone, a list of text and second text, or
    a list of words for a model that tags words.

    Raises:
        RowError: the row is something else.
    """
    if isinstance(row, str):
        return {form.text: row}
    if isinstance(row, Mapping):
        return row
    if isinstance(row, list | tuple):
        if form.task == "token-classification":
            return {WORDS: row}
        if form.text_pair is not None and form.task != "multiple-choice":
            if len(row) == 2:
                return dict(zip((form.text, form.text_pair), row, strict=True))
            both = f"{form.text!r} and {form.text_pair!r}"
            raise RowError(f"expected the two texts {both}, found a list of {len(row)}")
    raise RowError(f"expected an object with the column {form.text!r}, found {_kind(row)}")


def texts_of(row: Any, form: InputFormat) -> tuple[str, str | None]:
    """(text, second text or None) of a row.

    Raises:
        RowError: what is wrong with the row.
    """
    row = columns(row, form)
    text = column(row, form.text)
    if form.text_pair is None or (form.pair_optional and form.text_pair not in row):
        return text, None
    return text, column(row, form.text_pair)


def column(row: Mapping[str, Any], name: str) -> str:
    """The text in a column of a row; RowError where there is none."""
    if name not in row:
        found = ", ".join(repr(str(key)[:40]) for key in islice(row, 10)) or "none"
        raise RowError(f"the column {name!r} is missing, found {found}")
    text = row[name]
    if not isinstance(text, str):
        raise RowError(f"the column {name!r}: expected a string, found {_kind(text)}")
    if not text.strip():
        raise RowError(f"the column {name!r}: the text is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"the column {name!r}: half a surrogate pair is no character") from None
    return text


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON where they have one."""
    found = (name for kinds, name in _KINDS if isinstance(value, kinds))
    return next(found, type(value).__name__)
