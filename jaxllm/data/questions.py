"""Questions with choices, one of them right: a text for each choice, those of a question together.

Rows are those of SWAG (Zellers et al., 2018) and its like: a context (``data.text``), how all
endings begin (``data.text_pair``, if anything), the endings (``data.choices``) and the place of the
right one from 0 (``data.label``). As in its reference implementation and BERT's (Devlin et al.,
2018, section 4.4), context and ending are the two texts of a pair.
"""

from typing import TYPE_CHECKING

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.corpus import load_arrays, sources_of
from jaxllm.data.groups import Groups
from jaxllm.data.packing import Rows
from jaxllm.data.rows import Source
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
