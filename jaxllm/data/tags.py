"""Tags of words: the schemes in which they mark entities, how these are spelled, and plain tags."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxllm.data.label_cells import unnamed
from jaxllm.errors import InputError

OUTSIDE = "O"
ONE_TYPE = "entity"  # of entities whose tags name no type: B, I, O
# What a letter says: its word is the first, an inner, the last or the only one of an entity. BILOU
# has L and U for E and S, BMES has M for I, BMEWO also W for S.
_MEANS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_TYPED = re.compile(rf"([{''.join(_MEANS)}])([-_])(.+)", re.DOTALL)
_TYPE_FIRST = re.compile(r".+[-_]B", re.DOTALL)
_SHOWN = 20  # tags in a message
_OTHERS = "take another column (data.label), or name all tags in data.labels"
_ENTITIES = "model.tags: entities, where a run of one tag is an entity"
_PLAIN = "model.tags: plain, where each word has a tag of its own"


class Span(NamedTuple):
    """Words `start` to `end` (excluded) of a sentence are one entity."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Scheme:
    """How the tags of words mark entities.

    kind: IO (a tag is a type), IOB2 (a tag has B or I) or BIOES (also E for the last, S for the
        only word); plain = tags mark no entities.
    letters: how B, I, E and S are spelled: BIES, BILU, BMES; of IOB2 the first two.
    joint: what stands between letter and type; empty = tags name no types.
    """

    kind: Literal["plain", "IO", "IOB2", "BIOES"]
    letters: str = ""
    joint: str = "-"

    @property
    def plain(self) -> bool:
        """Whether tags mark no entities."""
        return self.kind == "plain"

    def describe(self, names: Iterable[str]) -> str:
        """What is learned from the tags `names`, for the log."""
        if self.plain:
            return "plain: judged word by word"
        spelled = f", spelled {self.letters}" if self.letters not in ("", "BI", "BIES") else ""
        return f"{self.kind}{spelled}: entities of type {', '.join(self.types(names))}"

    def names(self, tags: Iterable[str]) -> list[str]:
        """The tags of a model that learns `tags`, in the order of their ids: plain tags sorted;
        else O (where tags name no types, as of words in Chinese, if it is there), then every tag
        that the scheme has for their types, sorted.
        """
        tags = set(tags)
        if self.plain:
            return sorted(tags)
        outside = {OUTSIDE} if self.joint else tags & {OUTSIDE}
        return [*outside, *sorted({tag for x in self.types(tags) for tag in self._tags_of(x)})]

    def types(self, tags: Iterable[str]) -> list[str]:
        """The types of entities that `tags` mark, sorted."""
        return sorted({parsed[1] for tag in tags if (parsed := self._parsed(tag))})

    def retagged(self, tags: Sequence[str]) -> list[str]:
        """The legal sequence nearest to `tags`; equal to `tags` exactly if they are legal.

        Entities are those that conlleval (Tjong Kim Sang and Buchholz, CoNLL-2000) reads: one
        begins at B and S, and at I and E where no entity of its type is open; it ends after E and
        S, and before another begins. IOB1, in which entities begin with I, so becomes IOB2.
        """
        legal = list(tags)
        for span in self._spans(tags):
            legal[span.start : span.end] = self._marks(span)
        return legal

    def entities(self, tags: Sequence[str]) -> list[Span]:
        """The entities of a sentence in their order; tags out of order make none, as in seqeval's
        strict mode (Nakayama, 2018).
        """
        return [
            span
            for span in self._spans(tags)
            if self._marks(span) == list(tags[span.start : span.end])
        ]

    def _spans(self, tags: Sequence[str]) -> list[Span]:
        spans: list[Span] = []
        open_type = None
        for i, tag in enumerate(tags):
            letter, kind = self._parsed(tag) or (OUTSIDE, None)
            if letter in "IE" and kind == open_type:
                spans[-1] = spans[-1]._replace(end=i + 1)
            elif kind is not None:
                spans.append(Span(kind, i, i + 1))
            open_type = None if letter in "ES" else kind
        return spans

    def _marks(self, span: Span) -> list[str]:
        """The legal tags of the words of an entity."""
        inner = span.end - span.start - 1
        letters = "I" * (inner + 1)
        if self.kind == "IOB2":
            letters = "B" + "I" * inner
        elif self.kind == "BIOES":
            letters = "B" + "I" * (inner - 1) + "E" if inner else "S"
        spelled = dict(zip("BIES", self._tags_of(span.type), strict=False))
        return [spelled[letter] for letter in letters]

    def _tags_of(self, kind: str) -> list[str]:
        """The tags of a type of entity, in the order of BIES."""
        if self.kind == "IO":
            return [kind, kind]
        return [f"{letter}{self.joint}{kind}" if self.joint else letter for letter in self.letters]

    def _parsed(self, tag: str) -> tuple[str, str] | None:
        """(B, I, E or S; type) of a tag, whatever the spelling; None outside of entities."""
        if tag == OUTSIDE or self.plain:
            return None
        if self.kind == "IO":
            return "I", tag
        if not self.joint:
            return (_MEANS[tag], ONE_TYPE) if tag in _MEANS else None
        match = _TYPED.fullmatch(tag)
        return (_MEANS[match[1]], match[3]) if match else None


def scheme_of(tags: Iterable[str], wanted: str, where: str) -> Scheme:
    """The scheme of all the tags that there are, in data or in a model.

    `wanted`: model.tags: entities, plain, or auto, which takes tags for plain where none is O and
    none has a letter of a scheme.

    Raises:
        InputError: `tags` cannot be as wanted, or do not tell what they mean.
    """
    names = list(tags)
    tags = set(names)
    marks = tags - {OUTSIDE}
    typed = [match for tag in marks if (match := _TYPED.fullmatch(tag))]
    bare = marks <= _MEANS.keys() and bool(marks & {"B", "I"})

    def refusal(fault: str) -> InputError:
        found = sorted(tags, key=lambda tag: (tag != OUTSIDE, tag))
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return InputError(f"{where}: found {', '.join(found[:_SHOWN])}{more}; {fault}")

    lettered = bool(typed) or bare
    if wanted != "plain" and not lettered and any(map(_TYPE_FIRST.fullmatch, marks)):
        raise refusal(f"expected the letter first, as in B-PER: rewrite the tags, or set {_PLAIN}")
    if wanted == "plain" or (wanted == "auto" and not lettered and OUTSIDE not in tags):
        if len(tags) < 2:
            raise refusal(f"expected two tags or more; {_OTHERS}")
        if wanted == "auto" and unnamed(names):
            raise refusal("expected names: give them as data.labels, or as id2label in config.json")
        return Scheme("plain")
    if not marks:
        raise refusal(f"expected {OUTSIDE} and the tags of at least one type of entity; {_OTHERS}")
    if OUTSIDE not in tags and not bare and len(typed) < len(marks):
        fault = f"expected {OUTSIDE} for the words outside of entities: rewrite the tags, or set "
        raise refusal(fault + _PLAIN)
    if not lettered and wanted == "auto":
        raise refusal(f"which may mark entities or not: set {_ENTITIES}, or {_PLAIN}")
    if not lettered:
        return Scheme("IO")
    used = {match[1] for match in typed} or marks
    joint = "-" if any(match[2] == "-" for match in typed) else "_" * bool(typed)
    letters = "B" + _first(used, "IM", "I")
    if not used & set("ELSUW"):
        return Scheme("IOB2", letters, joint)
    last = _first(used, "EL", "L" if "U" in used else "E")
    return Scheme("BIOES", letters + last + _first(used, "SUW", "U" if last == "L" else "S"), joint)


def _first(used: set[str], letters: str, otherwise: str) -> str:
    """The first of the letters of one meaning that is in use."""
    return next((letter for letter in letters if letter in used), otherwise)
