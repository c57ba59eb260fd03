"""Tagged words as rows: the tags that are meant, their scheme, and why a row cannot be used."""

import math
from typing import Any, NamedTuple

from jaxllm.config.fields import DataConfig
from jaxllm.data.builder import text_fault
from jaxllm.data.label_cells import MASKED, LabelNames
from jaxllm.data.rows import Row, Source
from jaxllm.data.tags import Scheme, scheme_of

_ILLEGAL, _UNKNOWN, _NUMBER = "illegal tag sequence", "unknown tag", "tag of type int"
_NO_LIST = "no list of"
TOO_LONG = "longer than data.max_length"


class Fault(NamedTuple):
    """Why a row is no sentence of tagged words; `number`: of the row, or of the line at fault."""

    number: int
    reason: str
    note: str = ""


class Tagged(NamedTuple):
    """A sentence; None: a word without a tag. `repaired`: its tags were made legal."""

    number: int
    words: list[str]
    tags: list[str | None]
    repaired: bool


class TaggedRows:
    """The rows of the sources of a part, all of them in memory.

    Args:
        names: the tags in the order of their ids; None = `Scheme.names` of those in the part.
        wanted: model.tags.

    Attributes:
        names: likewise.
        rows: the name of its source, and a sentence or a fault, for each row.

    Raises:
        InputError: a source cannot be read, or tags do not tell what they mean.
    """

    def __init__(
        self,
        data: DataConfig,
        split: str,
        sources: list[Source],
        names: list[str] | None,
        wanted: str,
    ):
        self._data, self._learned = data, names is None
        known = None if names is None else LabelNames(names, told=names == data.labels)
        rows = [(source, _meant(row, known)) for source in sources for row in source.rows()]
        faults = [_fault(row) for _, row in rows]
        if names is None:
            good = [row for (_, row), fault in zip(rows, faults, strict=True) if fault is None]
            names = list({tag for row in good for tag in row.label if tag is not None})
        self._scheme = Scheme("plain")  # of no tags at all
        if names:
            given = "data.labels" if data.labels else f"{sources[0].name}: the labels"
            where = f"data.{split}: the tags" if self._learned else given
            self._scheme = scheme_of(names, wanted, where)
        self.names = self._scheme.names(names) if self._learned else names
        taken = set(self.names)
        self.rows = [
            (source.name, fault or self._tagged(row, taken))
            for (source, row), fault in zip(rows, faults, strict=True)
            if not row.elsewhere
        ]

    def _tagged(self, row: Row, names: set[str]) -> Fault | Tagged:
        tags = self._legal(row.label)
        for i, (found, legal) in enumerate(zip(row.label, tags, strict=True)):
            if found != legal and self._data.on_bad_row != "repair":
                return _fault_at(row, i, _ILLEGAL, f"{found} where {legal} is expected")
            if legal is not None and legal not in names:
                return _fault_at(row, i, f"{_UNKNOWN} {legal[:40]!r}")
        return Tagged(row.number, row.text, tags, tags != row.label)

    def _legal(self, tags: list[str | None]) -> list[str | None]:
        """`Scheme.retagged` of the words that have a tag."""
        legal = iter(self._scheme.retagged([tag for tag in tags if tag is not None]))
        return [None if tag is None else next(legal) for tag in tags]

    def advice(self, reasons: str) -> str:
        """What there is to say to `reasons` why sentences cannot be used; begins with "; "."""
        known = ""
        if _UNKNOWN in reasons or _ILLEGAL in reasons:
            known += f"; the tags are {', '.join(self.names)}"
        if _UNKNOWN in reasons and self._learned:
            known += "; with model.tags: plain any tag is one"
        if _ILLEGAL in reasons:
            known += "; with data.on_bad_row: repair such sequences become legal (IOB1 as IOB2)"
        if _NUMBER in reasons:
            known += "; data.labels gives the tags in the order of such numbers"
        if _NO_LIST in reasons:
            known += "; tagged words are two lists a line of JSON, or a word a line in CoNLL files"
        if self._data.truncation == "drop" and TOO_LONG in reasons:
            known += "; with data.truncation: right a sentence is cut"
        return known


def _meant(row: Row, known: LabelNames | None) -> Row:
    """The row with the tags that are meant, see `jaxllm.data.labels`; None where there is none, as
    of NaN and, where tags are `known`, of -1 and -100. What has no name stays, to be told.
    """
    if not isinstance(row.label, list):
        return row

    def meant(tag: Any) -> Any:
        if isinstance(tag, float) and not math.isfinite(tag):
            return None
        if known is None or isinstance(tag, bool) or not isinstance(tag, int | str):
            return tag
        return None if tag in MASKED else known.find(str(tag)) or tag

    return row._replace(label=list(map(meant, row.label)))


def _fault(row: Row) -> Fault | None:
    """Why a row is no sentence of tagged words; its tags may yet be unknown or out of order."""
    words, tags = row.text, row.label
    if row.fault is not None:
        return Fault(row.number, row.fault)
    for column, values in (("words", words), ("tags", tags)):
        if not isinstance(values, list) or not values:
            return Fault(row.number, f"{_NO_LIST} {column}")
    if len(words) != len(tags):
        return Fault(row.number, "other than one tag a word", f"{len(words)}, {len(tags)}")
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if fault := text_fault(word, "word") or (tag is not None and text_fault(tag, "tag")):
            return _fault_at(row, i, fault)
    return None if set(tags) != {None} else Fault(row.number, "no word with a tag")


def _fault_at(row: Row, i: int, reason: str, note: str = "") -> Fault:
    """A fault of word i, which has a line of its own in a CoNLL file."""
    if row.lines is not None:
        return Fault(row.lines[i], reason, note)
    return Fault(row.number, reason, f"word {i + 1}{note and f': {note}'}")
