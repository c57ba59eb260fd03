"""Judging parameters on a labelled part: every row once; metrics, report, predictions on disk."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.config.fields import Config, DataConfig
from jaxllm.data.corpus import Examples, ReadReport
from jaxllm.data.loader import eval_batches
from jaxllm.files import write_atomic
from jaxllm.metrics.classification import Sums, classification_metrics, predictions, probabilities
from jaxllm.metrics.classification_plots import draw
from jaxllm.metrics.report import one_prediction, text_report
from jaxllm.nn.sharding import batch_sharding, batch_shards

logger = logging.getLogger("jaxllm")


@dataclass(frozen=True)
class Evaluator:
    """A labelled part and how to judge a model on it.

    eval_step: `params, batch -> ({"loss": (sum, weight), …}, logits [B, P, C])`.
    batch_size: examples of a batch (packed: on average).
    label_names: in the order of the ids; empty for regression.
    """

    examples: Examples
    data: DataConfig
    problem_type: str
    label_names: list[str]
    batch_size: int
    mesh: jax.sharding.Mesh
    eval_step: Callable[[Any, dict[str, jax.Array]], tuple[dict[str, Any], jax.Array]]

    def logits(self, params: Any) -> tuple[np.ndarray, float]:
        """(float32 [N, C] in the order of the examples, mean loss).

        Raises:
            RuntimeError: an example did not come up exactly once.
        """
        count = len(self.examples)
        logits_NC = np.full((count, len(self.label_names) or 1), np.nan, np.float32)
        sums = Sums()
        for values, logits_BPC, index_BP in outputs_of(
            self.examples,
            lambda batch: self.eval_step(params, batch),
            data=self.data,
            batch_size=self.batch_size,
            mesh=self.mesh,
        ):
            filled = index_BP >= 0
            logits_NC[index_BP[filled]] = logits_BPC[filled]
            sums.add({"loss": values["loss"]})
        if sums.weight("loss") != count:
            raise RuntimeError(
                f"evaluation must see each of {count} examples once: the weights add up to "
                f"{sums.weight('loss'):g}"
            )
        return logits_NC, sums.means()["loss"]

    @property
    def _labels(self) -> np.ndarray:
        assert self.examples.labels is not None, "examples without labels cannot be judged"
        return self.examples.labels

    def metrics(self, params: Any) -> dict[str, float]:
        """`classification_metrics` and `loss`, the unsmoothed and unweighted mean."""
        logits_NC, loss = self.logits(params)
        remark = one_prediction(self.problem_type, logits_NC, self._labels, self.label_names)
        if remark is not None and jax.process_index() == 0:
            logger.warning("%s", remark)
        return self._metrics(logits_NC, loss)

    def _metrics(self, logits_NC: np.ndarray, loss: float) -> dict[str, float]:
        values = classification_metrics(
            self.problem_type, logits_NC, self._labels, self.label_names
        )
        return values | {"loss": loss}

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes `predictions.jsonl`, of classes also `roc.png` and `confusion.png`; returns the
        metrics and the report's text.

        A prediction has the number of its row in the source, its label and the predicted one, the
        `probability` of the predicted label where there is one, and `probabilities`, those of all
        labels by name; those of regression have none.
        """
        logits_NC, loss = self.logits(params)
        text = text_report(self.problem_type, logits_NC, self._labels, self.label_names)
        text = f"{read_summary(self.examples.report)}\nloss {loss:.4f}\n{text}"
        if jax.process_index() == 0:
            write_predictions(directory, self._rows(logits_NC))
            self._draw(logits_NC, directory)
        return self._metrics(logits_NC, loss), text

    def _draw(self, logits_NC: np.ndarray, directory: Path) -> None:
        """Pictures of what was predicted, of classes."""
        if self.problem_type != "regression":
            draw(directory, self.problem_type, logits_NC, self._labels, self.label_names)

    def _rows(self, logits_NC: np.ndarray) -> list[dict[str, Any]]:
        labels, rows = self._labels, self.examples.rows.tolist()
        predicted = predictions(self.problem_type, logits_NC)
        if self.problem_type == "regression":
            return [
                {"row": row, "label": float(label), "predicted": float(value)}
                for row, label, value in zip(rows, labels, predicted, strict=True)
            ]
        names = self.label_names
        probability_NC = probabilities(self.problem_type, logits_NC).round(6)
        if self.problem_type == "multi_label_classification":
            return [
                {
                    "row": row,
                    "label": [names[c] for c in np.flatnonzero(label_C)],
                    "predicted": [names[c] for c in np.flatnonzero(predicted_C)],
                    "probabilities": dict(zip(names, share_C.tolist(), strict=True)),
                }
                for row, label_C, predicted_C, share_C in zip(
                    rows, labels, predicted, probability_NC, strict=True
                )
            ]
        return [
            {
                "row": row,
                "label": names[label],
                "predicted": names[best],
                "probability": float(share_C[best]),
                "probabilities": dict(zip(names, share_C.tolist(), strict=True)),
            }
            for row, label, best, share_C in zip(
                rows, labels, predicted, probability_NC, strict=True
            )
        ]


def outputs_of(
    examples: Examples,
    step: Callable[[dict[str, jax.Array]], tuple[dict[str, Any], Any]],
    *,
    data: DataConfig,
    batch_size: int,
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[dict[str, Any], Any, np.ndarray]]:
    """Every example once: (metrics, outputs, index of the example in each slot) of each batch.

    `step` gives a batch's metrics and a tree of device arrays; outputs are that tree in numpy. The
    index is int64 [B, P], -1 for an empty slot. The device computes the next batch meanwhile.

    Raises:
        RuntimeError: at the end, if an example did not come up exactly once.
    """
    seen_N = np.zeros(len(examples), np.int64)
    shards = batch_shards(mesh)
    rows: float = batch_size
    if data.packing:
        rows = batch_size * examples.lengths.mean() / data.max_length
    batches = eval_batches(
        examples,
        data=data,
        batch_rows=max(1, -(-int(np.ceil(rows)) // shards)) * shards,
        shards=shards,
        sharding=batch_sharding(mesh),
    )
    pending: list[tuple[dict[str, Any], Any, np.ndarray]] = []
    for arrays, index_BP in batches:
        np.add.at(seen_N, index_BP[index_BP >= 0], 1)
        pending.append((*step(arrays), index_BP))
        if len(pending) == 2:
            values, outputs, index = pending.pop(0)
            yield values, jax.device_get(outputs), index
    for values, outputs, index in pending:
        yield values, jax.device_get(outputs), index
    if not (seen_N == 1).all():
        wrong = np.flatnonzero(seen_N != 1)
        raise RuntimeError(
            f"evaluation must see each of {len(examples)} examples once: {len(wrong)} were not "
            f"(the first: {wrong[:1]})"
        )


def write_predictions(directory: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes `predictions.jsonl`, a line a row."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(directory / "predictions.jsonl", "".join(lines))


def listed(summary: str, values: dict[str, float]) -> str:
    """A report that is `summary`, what was judged, and a line a metric."""
    width = max(map(len, values))
    lines = [f"{name:<{width}}  {value:>10.4f}" for name, value in values.items()]
    return "\n".join([summary, *lines]) + "\n"


def read_summary(report: ReadReport) -> str:
    """A line that says how many rows were read, and what became of those that were not kept."""
    dropped = [f"{count} dropped ({reason})" for reason, count in report.dropped.items() if count]
    changed = {"truncated": report.truncated, "repaired": report.repaired}
    counts = [f"{count} {what}" for what, count in changed.items() if count]
    return ", ".join([f"{report.read} rows read", f"{report.kept} kept", *dropped, *counts])


def summed(
    eval_step: Callable[[Any, Any], tuple[dict[str, Any], Any]],
    params: Any,
    examples: Any,
    config: Config,
    mesh: jax.sharding.Mesh,
) -> Sums:
    """The metrics of `eval_step` over all batches of `examples`, whose outputs are not kept."""
    shards = batch_shards(mesh)
    batches = eval_batches(
        examples,
        data=config.data,
        batch_rows=-(-config.train.eval_batch_size // shards) * shards,
        shards=shards,
        sharding=batch_sharding(mesh),
    )
    sums = Sums()
    pending: dict[str, Any] = {}
    for arrays, _ in batches:
        dispatched, _ = eval_step(params, arrays)
        sums.add(pending)  # the previous batch, while the device computes this one
        pending = dispatched
    sums.add(pending)
    return sums
