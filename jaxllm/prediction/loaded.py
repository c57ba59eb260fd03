"""A saved model that answers rows: what `jaxllm.load` gives, and what `jaxllm predict` runs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from os import PathLike
from typing import Any, Protocol

import jax
import numpy as np

from jaxllm.data.fit import check_batch
from jaxllm.errors import InputError
from jaxllm.nn.sharding import batch_shards, make_mesh
from jaxllm.prediction.batched import SHORTEST_ROW, BatchSizes, Predictor
from jaxllm.prediction.embedding import vectors
from jaxllm.prediction.saved import SavedModel


class Kind(Protocol):
    """What prediction needs to know of a task; `tasks.registry.TASKS` has one for each."""

    @property
    def head(self) -> str: ...
    @property
    def predictor(self) -> Callable[[SavedModel, BatchSizes], Predictor]: ...


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """Answers rows with what `jaxllm predict` answers lines with.

    Rows are padded to few lengths and put into batches of two sizes, so that few programs are
    compiled, each at its first use. Several threads may call one model.

    saved: the model on its devices, its tokenizer and how a row becomes tokens.
    predictor: what answers rows of the model's task.
    """

    saved: SavedModel
    predictor: Predictor
    _vectors: dict[bool | None, tuple[Predictor, int]] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        batch_size: int,
        kinds: Mapping[str, Kind],
        *,
        dtype: Any = "float32",
        key: str = "batch_size",
    ) -> "LoadedModel":
        """The model at `path` on all devices of this host, batches split over them.

        Args:
            path: a directory, Hub id or package:NAME/sub/dir.
            batch_size: rows of a batch; rounded up to a multiple of the devices.
            kinds: by the names of tasks.
            dtype: of the computation; parameters are float32.
            key: what `batch_size` is called in a message.

        Raises:
            InputError: no model there, one without the head of its task, a batch that no device
                could hold.
        """
        try:
            batch_size = index(batch_size)  # numpy's numbers, too
        except TypeError:
            raise InputError(f"{key}: found {batch_size!r:.80}, expected a whole number") from None
        if batch_size < 1:
            raise InputError(f"{key}: found {batch_size}, expected at least 1")
        mesh = make_mesh(devices=jax.local_devices())
        shards = batch_shards(mesh)
        heads = {name: kind.head for name, kind in kinds.items()}
        saved = SavedModel.load(path, mesh, heads, dtype)
        length = min(SHORTEST_ROW, saved.form.max_length)
        check_batch(key, batch_size, length, saved.config, mesh)
        sizes = (shards, -(-batch_size // shards) * shards)
        return cls(saved, kinds[saved.form.task].predictor(saved, sizes))

    def __call__(self, rows: Iterable[Any]) -> list[dict[str, Any]]:
        """An answer for each row, in the order of the rows.

        Args:
            rows: each is a text, a pair of texts, a list of words for a model that tags words, or a
                dict of the columns that the model was trained with.

        Returns:
            What `jaxllm predict` writes: the answer of the model's task; `error` and `line`, the
            row's number from 1, for a row that cannot be answered; `truncated` where text was cut.

        Raises:
            InputError: `rows` is no list of rows, as one text alone.
        """
        return _answers(self.predictor, _listed(rows, "model(rows)"))

    def encode(self, texts: Iterable[Any], *, normalize: bool | None = None) -> np.ndarray:
        """float32 [n, D]: the vectors of n texts, made of the model's last hidden states.

        They are pooled as sentence-transformers' files beside the weights say; without such files
        a vector is the mean over the text's tokens, scaled to length 1.

        Args:
            texts: strings. A text is cut at the model's greatest length.
            normalize: whether vectors are scaled to length 1; None = as the files say.

        Raises:
            InputError: `texts` is no list; a text is empty or no text.
        """
        rows = _listed(texts, "model.encode(texts)")
        if normalize not in self._vectors:
            sizes = self.predictor.batch_sizes
            self._vectors[normalize] = vectors(self.saved, sizes, normalize=normalize)
        predictor, width = self._vectors[normalize]
        answers = _answers(predictor, rows)
        for i, answer in enumerate(answers):
            if "error" in answer:
                raise InputError(f"texts[{i}]: {answer['error']}")
        found = [answer["embedding"] for answer in answers]
        return np.array(found, np.float32).reshape(-1, width)

    def __repr__(self) -> str:
        form, dtype = self.saved.form, self.saved.compute.dtype
        return (
            f"jaxllm.load({str(self.saved.directory)!r}): {form.task}, at most {form.max_length} "
            f"tokens, batches of {self.predictor.batch_sizes[1]}, {dtype}"
        )


def _answers(predictor: Predictor, rows: list[Any]) -> list[dict[str, Any]]:
    """By windows, so that what the model gives is not held for all rows at once."""
    starts = range(0, len(rows), predictor.window)
    windows = ((start, rows[start : start + predictor.window]) for start in starts)
    return [x for start, window in windows for x in predictor.answers(window, start + 1)]


def _listed(rows: Any, call: str) -> list[Any]:
    """The rows as a list; InputError for what only looks like rows: a text, a dict, a table."""
    way_out = "expected a list of rows; put one row in brackets: [row]"
    if isinstance(rows, str | bytes | Mapping):
        raise InputError(f"{call}: found one {type(rows).__name__}, {way_out}")
    if hasattr(rows, "columns"):  # its items are the names of its columns
        raise InputError(
            f"{call}: found a table ({type(rows).__name__}), expected a list of rows; give one of "
            "its columns, or its rows as dicts, in pandas table.to_dict('records')"
        )
    try:
        return list(rows)
    except TypeError:
        raise InputError(f"{call}: found {type(rows).__name__}, {way_out}") from None
