"""Token classification: words with tags; the data, the head, the loss, the metrics."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config, DataConfig
from jaxllm.data.fit import check_fit
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.sentences import Sentences, load_sentences
from jaxllm.data.tags import OUTSIDE, Scheme, scheme_of
from jaxllm.files import write_atomic
from jaxllm.metrics.classification import Sums, check_finite, softmax
from jaxllm.metrics.entities import entity_metrics, entity_report
from jaxllm.metrics.report import majority, one_class
from jaxllm.metrics.tags import tag_metrics, tag_report
from jaxllm.models import Apply
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import OneModel
from jaxllm.tasks.classification import training_loss
from jaxllm.tasks.evaluation import outputs_of, read_summary, write_predictions
from jaxllm.tasks.head import fitted, head_config, matched
from jaxllm.tasks.task import Task, chosen_metric
from jaxllm.training import losses
from jaxllm.training.objectives import labelled
from jaxllm.training.step import make_eval_step

logger = logging.getLogger("jaxllm")

HEAD = "token-classification"


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    train = dev = None
    wanted: str = config.model.tags
    if saved is None:
        train, found = load_sentences(config.data, "train", tokenizer, config.data.labels, wanted)
        head = fitted(config, found, HEAD)
        train = train.reordered(head.order)
    else:
        head = matched(config, saved)
        found = config.data.labels or head.names
        path, longest = hf.resolve(str(config.model.path)), config.data.max_length
        if wanted == "auto":
            wanted = InputFormat.load(path, max_length=longest).tags
    names = head.names
    scheme = scheme_of(names, wanted, f"{config.model.path}: the labels")
    if config.data.has_dev:
        dev, _ = load_sentences(config.data, "dev", tokenizer, found, wanted)
        warn_of_overlap(train, dev)
        dev = dev.reordered(head.order)
    logger.info("%d tags, %s", len(names), scheme.describe(names))
    tags = "plain" if scheme.plain else "entities"
    model_config = head_config(config, names) if saved is None else saved
    check_fit(model_config, tokenizer, config.data.max_length, pair=False)
    loss_fn = training_loss(config, head, train)

    def evaluator(apply: Apply, mesh: Mesh) -> TagEvaluator:
        assert dev is not None
        objective = labelled(apply, losses.cross_entropy)
        step = make_eval_step(objective, mesh)
        size = config.train.eval_batch_size
        return TagEvaluator(dev, config.data, names, scheme, size, mesh, step)

    return Task(
        model=OneModel(HEAD, model_config, new=head.new),
        train=train,
        reads_word_table_only=True,
        objective=lambda apply: labelled(apply, loss_fn),
        evaluator=None if dev is None else evaluator,
        metric=_metric(config, names, scheme),
        # Prediction also takes plain text, whatever the column of the words is called.
        save_extras=replace(InputFormat.of(config), text="text", tags=tags).save,
    )


def _metric(config: Config, names: list[str], scheme: Scheme) -> str:
    one: Any = np.zeros(1, int) if scheme.plain else [[OUTSIDE]]
    known = [*_values(scheme, names, one, one), "loss"]
    return chosen_metric(config, known, "accuracy" if scheme.plain else "f1")


def _values(scheme: Scheme, names: list[str], truth: Any, predicted: Any) -> dict[str, float]:
    """The metrics of ids of plain tags, or of the tags of each sentence."""
    if scheme.plain:
        return tag_metrics(truth, predicted, names)
    return entity_metrics(truth, predicted, scheme, names)


@dataclass(frozen=True)
class TagEvaluator:
    """Sentences of tagged words and how to judge a model on them.

    Every word with a tag counts. One that has no token, because its sentence was cut or the
    tokenizer makes nothing of it, is predicted to be outside of entities; of plain tags, it has no
    predicted tag, which is wrong. `batch_size`: sentences of a batch (packed: on average).
    `eval_step`: gives logits [B, T, C].
    """

    examples: Sentences
    data: DataConfig
    names: list[str]
    scheme: Scheme
    batch_size: int
    mesh: Mesh
    eval_step: Callable[[Any, dict[str, jax.Array]], tuple[dict[str, Any], jax.Array]]

    def metrics(self, params: Any) -> dict[str, float]:
        """`entity_metrics` or `tag_metrics`, and `loss`, the plain mean over the words that have
        tokens.
        """
        logits_WC, loss = self.logits(params)
        remark = self._remark(logits_WC)
        if remark is not None and jax.process_index() == 0:
            logger.warning("%s", remark)
        return self._metrics(logits_WC, loss)

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes `predictions.jsonl` and `predictions.conll`; returns the metrics and the report's
        text.

        A line of predictions.jsonl is a sentence: the number of its row in the source, words, tags,
        predicted tags and their probabilities. predictions.conll has, with tabs between, word, tag
        and predicted tag. A tag that is not there is null, and _ in predictions.conll.
        """
        logits_WC, loss = self.logits(params)
        values = self._metrics(logits_WC, loss)
        text = self._report(logits_WC, values)
        if jax.process_index() == 0:
            rows = list(self._rows(logits_WC))
            write_predictions(directory, rows)
            write_atomic(directory / "predictions.conll", "\n".join(map(_conll, rows)))
        return values, text

    def logits(self, params: Any) -> tuple[np.ndarray, float]:
        """(float32 [W, C] of the first piece of each word, NaN for words without; mean loss).

        Raises:
            RuntimeError: a sentence or a word did not come up exactly once.
            InputError: logits that are not finite.
        """
        examples = self.examples
        logits_WC = np.full((len(examples.word_labels), len(self.names)), np.nan, np.float32)
        sums = Sums()
        for values, logits_BTC, index_BP in outputs_of(
            examples,
            partial(self.eval_step, params),
            data=self.data,
            batch_size=self.batch_size,
            mesh=self.mesh,
        ):
            sums.add({"loss": values["loss"]})
            for logits_TC, index_P in zip(logits_BTC, index_BP, strict=True):
                begin = 0
                for i in index_P[index_P >= 0]:
                    words = slice(*examples.word_offsets[i : i + 2])
                    at = examples.word_tokens[words]
                    logits_WC[words][at >= 0] = logits_TC[begin + at[at >= 0]]
                    begin += int(examples.lengths_of(i))
        read = examples.word_tokens >= 0
        check_finite(logits_WC[read], "words")
        judged = (read & (examples.word_labels >= 0)).sum()
        if sums.weight("loss") != judged:
            raise RuntimeError(
                f"evaluation must see each of {judged} words once: the weights add up to "
                f"{sums.weight('loss'):g}"
            )
        return logits_WC, sums.means()["loss"]

    def _predicted(self, logits_WC: np.ndarray) -> np.ndarray:
        """int [W]: the most probable tag; -1 where a word has no token."""
        best = np.nan_to_num(logits_WC, nan=-np.inf).argmax(-1)
        return np.where(self.examples.word_tokens >= 0, best, -1)

    def _remark(self, logits_WC: np.ndarray) -> str | None:
        predicted = self._predicted(logits_WC)
        labels = self.examples.word_labels
        return one_class(predicted[predicted >= 0], labels, self.names, "word")

    def _tags(
        self, ids_W: np.ndarray, offsets: np.ndarray, none: str | None
    ) -> list[list[str | None]]:
        """The tags of each sentence, which begin at `offsets`; `none` for -1."""
        parts = np.split(ids_W, offsets[1:-1])
        return [[self.names[i] if i >= 0 else none for i in part] for part in parts]

    def _judged(self, logits_WC: np.ndarray) -> tuple[Any, Any]:
        """(true, predicted) of the words that have a tag: ids of plain tags, else the tags of each
        sentence.
        """
        examples, predicted = self.examples, self._predicted(logits_WC)
        known = examples.word_labels >= 0
        pair = examples.word_labels[known], predicted[known]
        if self.scheme.plain:
            return pair
        offsets = np.insert(np.cumsum(known), 0, 0)[examples.word_offsets]
        truth, answers = (self._tags(ids, offsets, OUTSIDE) for ids in pair)
        return truth, answers

    def _metrics(self, logits_WC: np.ndarray, loss: float) -> dict[str, float]:
        values = _values(self.scheme, self.names, *self._judged(logits_WC))
        return values | {"loss": loss}

    def _report(self, logits_WC: np.ndarray, values: dict[str, float]) -> str:
        pair, plain, examples = self._judged(logits_WC), self.scheme.plain, self.examples
        tagged = examples.word_labels >= 0
        lost = (tagged & (examples.word_tokens < 0)).sum()
        counted = "count as wrong" if plain else f"count as predicted {OUTSIDE}"
        lines = [
            read_summary(examples.report),
            f"{tagged.sum()} words, of them {lost} without a token, which {counted}",
            f"loss {values['loss']:.4f}  accuracy of words {values['accuracy']:.4f}",
            majority(examples.word_labels, self.names),
            "",
            tag_report(*pair, self.names) if plain else entity_report(*pair, self.scheme),
        ]
        if remark := self._remark(logits_WC):
            lines.append(f"note: {remark}\n")
        return "\n".join(lines)

    def _rows(self, logits_WC: np.ndarray) -> Iterator[dict[str, Any]]:
        predicted, offsets = self._predicted(logits_WC), self.examples.word_offsets
        share_W = np.take_along_axis(softmax(logits_WC), predicted[:, None], 1)[:, 0].round(6)
        shares = np.split(share_W, offsets[1:-1])
        truth = self._tags(self.examples.word_labels, offsets, None)
        answers = self._tags(predicted, offsets, None if self.scheme.plain else OUTSIDE)
        for i, (tags, answer) in enumerate(zip(truth, answers, strict=True)):
            yield {
                "row": int(self.examples.rows[i]),
                "tokens": self.examples.words(i),
                "tags": tags,
                "predicted": answer,
                "probability": [None if np.isnan(share) else float(share) for share in shares[i]],
            }


def _conll(row: dict[str, Any]) -> str:
    columns = zip(row["tokens"], row["tags"], row["predicted"], strict=True)
    return "".join("\t".join(field or "_" for field in fields) + "\n" for fields in columns)
