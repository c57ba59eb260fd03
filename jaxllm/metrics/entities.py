"""How well entities in tagged words were found: the numbers of seqeval (Nakayama, 2018), strict.

An entity is what `Scheme.entities` finds; it counts as found if type, first and last word are
right.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jaxllm.data.tags import Scheme
from jaxllm.metrics.classification import NAN
from jaxllm.metrics.report import table

Tags = Sequence[list[str]]  # of the words of each sentence


def entity_metrics(
    truth: Tags, predicted: Tags, scheme: Scheme, names: Sequence[str]
) -> dict[str, float]:
    """`precision`, `recall`, `f1` over all entities (micro), `accuracy` of words, `f1/<type>`.

    Args:
        truth, predicted: tags of the same sentences.
        names: all tags of the model, which tell the types.

    0 where nothing was predicted, or nothing was there to be found; NaN for a type that is neither
    in the truth nor predicted.
    """
    by_type, total = _scores(truth, predicted, scheme)
    chain = itertools.chain.from_iterable
    hits = [a == b for a, b in zip(chain(truth), chain(predicted), strict=True)]
    values = {"precision": total.precision, "recall": total.recall, "f1": total.f1}
    values["accuracy"] = sum(hits) / len(hits)
    found = {kind: score.f1 for kind, score in by_type.items()}
    return values | {f"f1/{kind}": found.get(kind, NAN) for kind in scheme.types(names)}


def entity_report(truth: Tags, predicted: Tags, scheme: Scheme) -> str:
    """A table of precision, recall and F1, one line a type; ends with a newline."""
    by_type, total = _scores(truth, predicted, scheme)
    rows = [["type", "precision", "recall", "f1", "entities"]]
    for kind, score in [*by_type.items(), ("all", total)]:
        shares = (score.precision, score.recall, score.f1)
        rows.append([kind, *(f"{share:.4f}" for share in shares), str(score.there)])
    return table(rows) + "\n"


class _Score(NamedTuple):
    """Entities that are there, that were predicted, and that are both."""

    there: int
    predicted: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.there if self.there else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / ((self.there + self.predicted) or 1)


def _scores(truth: Tags, predicted: Tags, scheme: Scheme) -> tuple[dict[str, _Score], _Score]:
    """Of each type that occurs, sorted, and of all together."""
    counts = [Counter[str]() for _ in _Score._fields]
    for pair in zip(truth, predicted, strict=True):
        there, found = (set(scheme.entities(tags)) for tags in pair)
        for count, spans in zip(counts, (there, found, there & found), strict=True):
            count.update(span.type for span in spans)
    types = sorted(counts[0] | counts[1])
    by_type = {kind: _Score(*(count[kind] for count in counts)) for kind in types}
    return by_type, _Score(*(count.total() for count in counts))
