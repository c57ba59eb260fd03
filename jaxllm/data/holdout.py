"""`data.dev_fraction`: a share of the training rows that is the dev part, the same in every run.

Which rows are held out is a function of what they hold and of `data.dev_seed`; not of their order,
nor of train.seed, or the runs of several seeds would be judged on one another's training rows.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data import cache
from jaxllm.data.builder import text_fault
from jaxllm.data.philox import philox
from jaxllm.data.rows import FORM, Row, Source, text_hash
from jaxllm.errors import InputError

_CACHE_VERSION = 1  # raise when the same input comes to give other rows

Key = tuple[int, int]  # of a row: the hash of what must not be in both parts, and of its stratum


class Holdout(NamedTuple):
    """What is held out.

    Attributes:
        hashes: those of the rows' keys.
        counts: int64[S, 2], how many rows of each source are not held out, and how many are.
        name: another string for every other choice.
    """

    hashes: frozenset[int]
    counts: np.ndarray
    name: str

    def is_elsewhere(self, key: Key | None, split: str) -> bool:
        """Whether a row with that key is of the other part than `split`."""
        return (key is not None and key[0] in self.hashes) != (split == "dev")

    def fingerprint(self, whole: str, split: str) -> str:
        """That of a source's rows of `split`, where `whole` is that of all its rows."""
        return f"{whole} {split} {self.name}"


def hold_out(
    keys: Sequence[Callable[[], Iterator[Key | None]]],
    fingerprints: Sequence[str],
    data: DataConfig,
) -> Holdout:
    """Holds out ``data.dev_fraction`` of the rows of several sources, see `chosen`.

    Args:
        keys: of the rows of each source; None: a row that cannot be used, and is not held out.
        fingerprints: of the sources.

    Raises:
        InputError: there are not two different rows.
    """
    settings = ("text", "text_pair", "choices", "label", "on_bad_row", "dev_fraction", "dev_seed")
    entry = cache.entry_of(
        data,
        (*FORM, *settings),
        version=f"holdout {_CACHE_VERSION}",
        sources=list(fingerprints),
    )

    def build(store: cache.Store) -> dict[str, str]:
        pairs = [
            np.fromiter((key or (0, 0) for key in each()), np.dtype((np.uint64, 2)))
            for each in keys
        ]
        hashes, strata = np.concatenate(pairs).T
        usable = hashes > 0
        held = chosen(hashes[usable], strata[usable], data.dev_fraction, data.dev_seed)
        within = [int(np.isin(pair[:, 0], held).sum()) for pair in pairs]
        store.append("held", held)
        rows = [[len(pair) - k, k] for pair, k in zip(pairs, within, strict=True)]
        store.append("counts", np.array(rows, np.int64))
        return {}

    def fault(arrays: cache.Arrays, about: object) -> str | None:
        return None if arrays["counts"].shape == (len(keys), 2) else "counts of other sources"

    arrays, _ = cache.load(entry, build, fault)
    held = arrays["held"]
    return Holdout(
        frozenset(held.tolist()), np.array(arrays["counts"]), f"{zlib.crc32(held.data):08x}"
    )


def chosen(hashes: np.ndarray, strata: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """uint64[k]: the hashes that are held out, a share of the different ones in uint64[n] `hashes`.

    Of each stratum it is the same share, to within one; a stratum of one row is held out last.

    Raises:
        InputError: there are not two different hashes.
    """
    units, first = np.unique(hashes, return_index=True)
    if len(units) < 2:
        raise InputError(
            f"data.dev_fraction: found {fraction}, but data.train has {len(units)} different rows "
            "to choose from, expected at least two; give more, or a dev part as data.dev"
        )
    _, stratum, sizes = np.unique(strata[first], return_inverse=True, return_counts=True)
    # The rows with the lowest numbers go, so that few others do when rows are added.
    number = philox((seed, 0), units, np.zeros(len(units), np.int64), 0)[0]
    order = np.lexsort((units, number, stratum))
    begins = np.cumsum(sizes) - sizes
    counts = np.floor(fraction * sizes).astype(np.int64)
    wanted = min(max(round(fraction * len(units)), 1), len(units) - 1)
    largest = np.lexsort((number[order[begins]], counts - fraction * sizes, sizes == 1))
    counts[largest[: wanted - counts.sum()]] += 1
    rank = np.arange(len(units)) - np.repeat(begins, sizes)
    return np.sort(units[order[rank < np.repeat(counts, sizes)]])


def parts_of(
    sources: list[Source], split: str, data: DataConfig, *, labelled: bool
) -> list[Source]:
    """The sources of data.train as those of `split`: rows of the other part are marked."""
    if not data.dev_fraction:
        return sources

    def key(row: Row) -> Key | None:
        content = content_of(row)
        if content is None or (labelled and row.label is None):
            return None
        return content, text_hash(repr(row.label)) if labelled else 0

    def marked(source: Source) -> Iterator[Row]:
        return (r._replace(elsewhere=held.is_elsewhere(key(r), split)) for r in source.rows())

    def keys(source: Source) -> Iterator[Key | None]:
        return map(key, source.rows())

    fingerprints = [source.fingerprint() for source in sources]
    held = hold_out([partial(keys, source) for source in sources], fingerprints, data)
    return [
        replace(
            source,
            rows=partial(marked, source),
            fingerprint=partial(held.fingerprint, own, split),
            empty=not count[split == "dev"],
        )
        for source, own, count in zip(sources, fingerprints, held.counts.tolist(), strict=True)
    ]


def content_of(row: Row) -> int | None:
    """`text_hash` of a row's texts or words; None where it cannot be used."""
    texts = row.text if isinstance(row.text, list) else [row.text]
    more = row.choices if isinstance(row.choices, list) else []
    texts = [*texts, *([row.pair] if row.pair else []), *more]
    if row.fault or not texts or any(text_fault(text, "text") for text in texts):
        return None
    return text_hash(*texts)
