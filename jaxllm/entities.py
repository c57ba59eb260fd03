"""Entities in tagged words, and how well they were found: seqeval (Nakayama, 2018), strict mode.

In strict mode an entity is a run of tags that the scheme allows (IOB2: begins with B; BIOES: also
ends with E, or is one S), and it counts as found if type, first and last word are right.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from jaxllm.data.tags import Span, scheme_of, type_of
from jaxllm.metric_report import table
from jaxllm.metrics import NAN

Tags = Sequence[list[str]]  # of the words of each sentence


def entities_in(tags: list[str], scheme: str) -> list[Span]:
    """The entities of a sentence in their order; tags out of order make none."""
    from seqeval.scheme import Tokens

    found = Tokens(tags, _seqeval_scheme(scheme)).entities
    return [Span(entity.tag, entity.start, entity.end) for entity in found]


def entity_metrics(truth: Tags, predicted: Tags, names: Sequence[str]) -> dict[str, float]:
    """`precision`, `recall`, `f1` over all entities (micro), `accuracy` of words, `f1/<type>`.

    Args:
        truth, predicted: tags of the same sentences.
        names: all tags of the model, which tell the scheme and the types.

    0 where nothing was predicted, or nothing was there to be found; NaN for a type that is neither
    in the truth nor predicted.
    """
    by_type, total = _scores(truth, predicted, names)
    chain = itertools.chain.from_iterable
    hits = [a == b for a, b in zip(chain(truth), chain(predicted), strict=True)]
    precision, recall, f1, _ = total
    accuracy = sum(hits) / len(hits)
    values = {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy}
    types = sorted({type_of(name) for name in names} - {""})
    return values | {f"f1/{kind}": by_type.get(kind, (NAN,) * 4)[2] for kind in types}


def entity_report(truth: Tags, predicted: Tags, names: Sequence[str]) -> str:
    """A table of precision, recall and F1, one line a type; ends with a newline."""
    by_type, total = _scores(truth, predicted, names)
    rows = [["type", "precision", "recall", "f1", "entities"]]
    for kind, (*shares, count) in [*by_type.items(), ("all", total)]:
        rows.append([kind, *(f"{share:.4f}" for share in shares), str(int(count))])
    return table(rows) + "\n"


def _scores(truth: Tags, predicted: Tags, names: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """(precision, recall, F1, entities there) of each type that occurs, and of all together."""
    from seqeval.metrics.v1 import precision_recall_fscore_support, unique_labels

    scheme = _seqeval_scheme(scheme_of(names))
    pair = (list(truth), list(predicted))
    options = {"scheme": scheme, "zero_division": 0}
    types = unique_labels(*pair, scheme)
    columns = precision_recall_fscore_support(*pair, average=None, **options)
    total = precision_recall_fscore_support(*pair, average="micro", **options)
    rows = zip(*(map(float, column) for column in columns), strict=True)
    return dict(zip(types, rows, strict=True)), tuple(map(float, total))


def _seqeval_scheme(scheme: str) -> Any:
    from seqeval.scheme import IOB2, IOBES

    return {"IOB2": IOB2, "BIOES": IOBES}[scheme]
