"""Rows whose text is in both parts: what a model scores on them says nothing of unseen text."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_LOG = logging.getLogger(__name__)
_SHOWN = 3  # rows of each part in the warning


class Part(Protocol):
    """What is read of a part: n rows.

    hashes: uint64[n], `rows.text_hash` of the texts of each; None = not known.
    rows: n, what each is called in messages.
    """

    @property
    def hashes(self) -> np.ndarray | None: ...

    @property
    def rows(self) -> np.ndarray | Sequence[Any]: ...


def warn_of_overlap(train: Part | None, dev: Part | None, unit: str = "row") -> None:
    """Warns of rows of the dev part whose text the training part has too; `unit`: what `rows` are
    numbers or names of.
    """
    if train is None or dev is None or train.hashes is None or dev.hashes is None:
        return
    shared = np.flatnonzero(np.isin(dev.hashes, train.hashes))
    if not len(shared):
        return
    first = shared[:_SHOWN]
    twins = [int(np.flatnonzero(train.hashes == dev.hashes[i])[0]) for i in first]
    _LOG.warning(
        "data.dev: %d of %d %ss have the text of one in data.train (%s %s; in data.train %s %s): "
        "metrics on them say nothing of unseen text. Remove them from one of the parts",
        *(len(shared), len(dev.hashes), unit),
        *(unit, ", ".join(str(dev.rows[i]) for i in first)),
        *(unit, ", ".join(str(train.rows[i]) for i in twins)),
    )
