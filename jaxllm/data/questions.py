"""Questions with choices, one of them right: a text for each choice, those of a question together.

Rows are those of SWAG (Zellers et al., 2018) and its like: a context (``data.text``), how all
endings begin (``data.text_pair``, if anything), the endings (``data.choices``) and the place of the
right one from 0 (``data.label``). As in its reference implementation and BERT's (Devlin et al.,
2018, section 4.4), context and ending are the two texts of a pair.
"""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.bad_rows import BadRows
from jaxllm.data.builder import choices_fault, second_text, text_fault
from jaxllm.data.corpus import ReadReport, load_arrays, log_report, sources_of
from jaxllm.data.groups import Groups
from jaxllm.data.labels import Labels
from jaxllm.data.packing import Rows
from jaxllm.data.rows import Row, Source, text_hash
from jaxllm.errors import InputError
from jaxllm.runtime import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHORTEST = 5  # tokens of a pair: three special ones, one of each text


class Questions(Groups):
    """n questions, groups of a text for each choice; ``labels`` int32[n] are places of choices."""

    @property
    def choices(self) -> int:
        """C, the texts of a question."""
        return self.width

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """The arrays of a batch of `rows`.

        ``input_ids``, ``segment_ids``, ``token_type_ids`` int32 [B, T],
        ``head_positions`` int32 [B, P * C], ``labels`` int32 [B, P], ``label_weights`` float32
        [B, P].
        """
        batch = self.fill_texts(rows, None, row_length=row_length, height=height, packing=packing)
        batch["labels"] = np.zeros(batch["label_weights"].shape, np.int32)
        # Questions fill the slots of a row from the first on, in the order of the members.
        assert self.labels is not None
        batch["labels"][batch["label_weights"] > 0] = self.labels[rows.members]
        return batch


def load_questions(data: DataConfig, split: str, tokenizer: "PreTrainedTokenizerFast") -> Questions:
    """The questions of ``split`` "train" or "dev", all with as many choices as the first.

    Each text has at most its share of ``data.max_length`` tokens.

    Raises:
        InputError: as `load_examples`; no choices; no room for them.
    """
    with processes.together():
        sources = sources_of(data, split, labelled=True)
        choices = _count(data, sources[0])
        if data.max_length < choices * SHORTEST:
            raise InputError(
                f"data.max_length: found {data.max_length}, expected at least "
                f"{choices * SHORTEST}: the {choices} choices of a question share it"
            )
        arrays, _, report = load_arrays(
            data,
            split,
            sources,
            tokenizer,
            problem_type="single_label_classification",
            labels=[str(place) for place in range(choices)],
            choices=choices,
        )
        questions = Questions(**arrays, report=report, width=choices)
    processes.check_same(f"the questions of data.{split}", lambda: questions.fingerprint)
    return questions


class Question(NamedTuple):
    """A question as text.

    Attributes:
        row: its number.
        text: with how its choices begin, where they begin alike.
        choices: two or more.
        label: the place of the right one.
        hash: of all its texts.
    """

    row: int
    text: str
    choices: list[str]
    label: int
    hash: int


def read_questions(data: DataConfig, split: str) -> tuple[list[Question], ReadReport]:
    """The questions of ``split`` "train" or "dev" as text; each may have a number of choices of its
    own.

    Raises:
        InputError: a file, column or row is not as it should be; no row is left.
    """
    sources = sources_of(data, split, labelled=True)
    bad = BadRows(data, split, sources[0].unit)
    questions: list[Question] = []
    read, limit = 0, data.limit(split)
    for source in sources:
        for row in source.rows():
            if row.elsewhere:
                continue
            if limit is not None and len(questions) == limit:
                break
            read += 1
            question = _question(row)
            if isinstance(question, str):
                bad.add(source.name, row.number, question, note=row.file)
            else:
                questions.append(question)
    bad.raise_if_stopped(read)
    if not questions:
        raise InputError(
            f"data.{split}: no row is left: {bad}; expected at least one question: correct the "
            "file, or give another"
        )
    report = ReadReport(read, len(questions), bad.counts)
    log_report(split, sources, report)
    return questions, report


def _question(row: Row) -> Question | str:
    """The question of a row, or why there is none."""
    if fault := row.fault or text_fault(row.text, "text"):
        return fault
    count = len(row.choices) if isinstance(row.choices, list) else 0
    if fault := choices_fault(row, max(count, 2)):
        return fault
    label, fault = _places(count).read(row.label)
    if fault is not None:
        return fault
    content = text_hash(row.text, *(second_text(row.pair, choice) for choice in row.choices))
    text = f"{row.text} {row.pair}" if row.pair else row.text
    return Question(row.number, text, row.choices, int(label), content)


@cache
def _places(count: int) -> Labels:
    """What reads the place of one of so many choices."""
    return Labels("single_label_classification", [str(place) for place in range(count)])


def _count(data: DataConfig, source: Source) -> int:
    """How many choices the questions have."""
    assert data.choices is not None
    if len(data.choices) > 1:
        return len(data.choices)
    first = next(source.rows(), None)
    found = first.choices if first is not None else None
    if not isinstance(found, list) or len(found) < 2:
        raise InputError(
            f"{source.name}, row {first.number if first else 1}: {data.choices[0]!r} "
            f"(data.choices) holds {str(found)[:40]!r}, expected a list of two or more choices; "
            "where each has a column of its own, name all of them"
        )
    return len(found)
