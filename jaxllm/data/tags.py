"""Tags of words that mark entities: IOB2 (B, I, O) and BIOES (also E for last, S for only word)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxllm.errors import InputError

OUTSIDE = "O"
PREFIXES = {"IOB2": "BI", "BIOES": "BIES"}


class Span(NamedTuple):
    """Words `start` to `end` (excluded) of a sentence are one entity."""

    type: str
    start: int
    end: int


def scheme_of(tags: Iterable[str]) -> str:
    """ "BIOES" where a tag begins with E- or S-, else "IOB2"."""
    return "BIOES" if any(tag[:2] in ("E-", "S-") for tag in tags) else "IOB2"


def tag_fault(tag: object) -> str | None:
    """Why `tag` is one of no scheme, or None."""
    if tag is None or tag == "":
        return "missing tag"
    if not isinstance(tag, str):
        return f"tag of type {type(tag).__name__}"
    if tag == OUTSIDE or (tag[:2] in ("B-", "I-", "E-", "S-") and len(tag) > 2):
        return None
    return f"tag {tag[:40]!r}, which is not O, B-TYPE, I-TYPE, E-TYPE or S-TYPE"


def type_of(tag: str) -> str:
    """PER of B-PER; empty for O."""
    return tag[2:]


def tag_names(tags: Iterable[str]) -> list[str]:
    """O, then every tag that the scheme of `tags` has for their types, sorted."""
    tags = set(tags)
    types = {type_of(tag) for tag in tags} - {""}
    return [OUTSIDE, *sorted(f"{p}-{t}" for t in types for p in PREFIXES[scheme_of(tags)])]


def check_names(names: Sequence[str], where: str) -> None:
    """Raises InputError unless `names` are tags of a scheme, O and at least one type among them."""
    faults = [fault for name in names if (fault := tag_fault(name))]
    if not faults and OUTSIDE in names and len(names) > 1:
        return
    raise InputError(
        f"{where}: found {', '.join(names)}{f': {faults[0]}' if faults else ''}; expected O and "
        "the tags of at least one type of entity, as B-PER, I-PER (IOB2) or B-PER, I-PER, E-PER, "
        "S-PER (BIOES)"
    )


def retagged(tags: Sequence[str], scheme: str) -> list[str]:
    """The legal sequence nearest to `tags`; equal to `tags` exactly if they are legal.

    Entities are those that conlleval (Tjong Kim Sang and Buchholz, CoNLL-2000) reads: one begins at
    B and S, and at I and E where no entity of its type is open; it ends after E and S, and before
    another begins. IOB1, in which entities begin with I, so becomes IOB2.
    """
    legal = [OUTSIDE] * len(tags)
    for kind, start, end in _conlleval_spans(tags):
        if scheme == "BIOES" and end - start == 1:
            legal[start] = f"S-{kind}"
            continue
        legal[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
        if scheme == "BIOES":
            legal[end - 1] = f"E-{kind}"
    return legal


def _conlleval_spans(tags: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    open_type = ""
    for i, tag in enumerate(tags):
        kind, prefix = type_of(tag), tag[0]
        if not kind:
            open_type = ""
            continue
        if prefix in "IE" and kind == open_type:
            spans[-1] = spans[-1]._replace(end=i + 1)
        else:
            spans.append(Span(kind, i, i + 1))
        open_type = "" if prefix in "ES" else kind
    return spans
