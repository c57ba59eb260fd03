"""Sentence embeddings: contrastive training on pairs, and how well cosines order the dev pairs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config, ContrastiveConfig
from jaxllm.data.fit import check_fit
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.pairs import Pairs, load_pairs, text_length
from jaxllm.errors import InputError
from jaxllm.metrics.classification import pearson, spearman
from jaxllm.models import Apply
from jaxllm.nn.pooling import Pooling
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf, sentence_transformers
from jaxllm.pretrained.sentence_transformers import Settings
from jaxllm.pretrained.storage import OneModel, SentenceModel
from jaxllm.tasks.evaluation import listed, outputs_of, read_summary, write_predictions
from jaxllm.tasks.task import Evaluator, Task, chosen_metric
from jaxllm.training.objectives import contrastive, embedded
from jaxllm.training.step import make_eval_step

BLOCK = 1024  # anchors that are compared with all positives at a time


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    # What a text is by itself, as the model takes it and prediction reads it.
    data, pairs = config.data, config.contrastive
    single = replace(data, text_pair=None, max_length=text_length(data, pairs))
    as_single = replace(config, data=single)
    model_config = saved or hf.load_config(config.model.path, **config.model.config)
    check_fit(model_config, tokenizer, single.max_length, pair=False)
    settings = _described(config)[1]
    tokenizer = settings.prepared(tokenizer)
    pooling = replace(pooling_of(config), skip=settings.skipped(tokenizer))
    _check(config, pooling, model_config)
    prompt = settings.prompt
    train = None if saved is not None else load_pairs(data, pairs, "train", tokenizer, prompt)
    dev = load_pairs(data, pairs, "dev", tokenizer, prompt) if data.has_dev else None
    warn_of_overlap(train, dev)
    known = known_metrics(pairs)
    why = ", which is what contrastive.score and contrastive.positive_from allow for"
    metric = chosen_metric(config, known, known[0], why)

    def evaluator(apply: Apply, mesh: Mesh) -> Evaluator:
        assert dev is not None
        step = make_eval_step(embedded(apply, pooling), mesh)
        return PairsEvaluator(dev, config, mesh, step)

    def save_extras(directory: Path) -> None:
        InputFormat.of(as_single).save(directory)
        sentence_transformers.write(
            directory,
            pooling,
            width=model_config.hidden_size,
            max_length=single.max_length,
            settings=settings,
        )

    model = OneModel("base", model_config)
    if pooling.layers:
        model = SentenceModel(model.head, model_config, layers=pooling.layers)
    return Task(
        model=model,
        train=train,
        reads_word_table_only=True,
        objective=lambda apply: contrastive(apply, pooling, pairs.temperature),
        evaluator=None if dev is None else evaluator,
        metric=metric,
        save_extras=save_extras,
    )


def pooling_of(config: Config) -> Pooling:
    """What the configuration says; else what sentence-transformers' files beside the model say."""
    found, model = _described(config)[0], config.model
    return replace(
        found,
        mode=found.mode if model.pooling == "auto" else model.pooling,
        normalize=found.normalize if model.normalize is None else model.normalize,
    )


def _described(config: Config) -> tuple[Pooling, Settings]:
    """What sentence-transformers' files beside the model say, else the defaults."""
    path = config.model.path
    found = None if path is None else sentence_transformers.read(hf.resolve(path, weights=False))
    return found or (Pooling(), Settings())


def _check(config: Config, pooling: Pooling, model_config: Any) -> None:
    path = Path(str(config.model.path))
    sentence_transformers.check_widths(path, pooling, model_config.hidden_size)
    if pooling.skip and config.data.truncation == "left":
        raise InputError(
            "data.truncation: found left, expected right: the model's prompt, which its texts "
            "begin with, is not to be cut off, as it is left out of the pooling"
        )


def known_metrics(pairs: ContrastiveConfig) -> list[str]:
    """Those of the dev part: of the order of its scores, and of its positives."""
    scores = [] if pairs.score is None else ["spearman", "pearson"]
    positives = pairs.score is None or pairs.positive_from is not None
    return [*scores, *(["retrieval_accuracy", "loss"] if positives else [])]


@dataclass(frozen=True)
class PairsEvaluator:
    """Pairs of texts and how to judge a model on them; see `task.Evaluator`.

    eval_step: `params, batch -> ({}, vectors [B, P * 2, D])`.
    """

    pairs: Pairs
    config: Config
    mesh: Mesh
    eval_step: Callable[[Any, dict[str, jax.Array]], tuple[dict[str, Any], Any]]

    def metrics(self, params: Any) -> dict[str, float]:
        """`spearman` and `pearson` of cosines and scores, where the pairs have scores. Of the
        positives, each anchor among all of them: `retrieval_accuracy`, the share of those whose own
        is the nearest, and `loss`, InfoNCE. What is the same text as the anchor, or as another of
        its positives, does not compete.
        """
        return self._metrics(*self._unit_vectors(params))

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes `predictions.jsonl`: row, cosine and, if there is one, score."""
        anchors_ND, positives_ND = self._unit_vectors(params)
        values = self._metrics(anchors_ND, positives_ND)
        cosine_N = np.sum(anchors_ND * positives_ND, axis=1)
        if jax.process_index() == 0:
            rows = [
                {"row": row, "cosine": round(cosine, 6)}
                for row, cosine in zip(self.pairs.rows.tolist(), cosine_N.tolist(), strict=True)
            ]
            if self.pairs.labels is not None:
                for row, score in zip(rows, self.pairs.labels.tolist(), strict=True):
                    row["score"] = score
            write_predictions(directory, rows)
        return values, listed(read_summary(self.pairs.report), values)

    def _unit_vectors(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """float64 [N, D] of the anchors and of the positives, each of length 1."""
        vectors: np.ndarray | None = None
        for _, e_BSD, index_BP in outputs_of(
            self.pairs,
            lambda batch: self.eval_step(params, batch),
            data=self.config.data,
            batch_size=self.config.train.eval_batch_size,
            mesh=self.mesh,
        ):
            if vectors is None:
                vectors = np.zeros((len(self.pairs), 2, e_BSD.shape[-1]))
            filled = index_BP >= 0
            vectors[index_BP[filled]] = e_BSD.reshape(*index_BP.shape, 2, -1)[filled]
        assert vectors is not None
        if not np.isfinite(vectors).all():
            raise InputError(
                "evaluation: vectors are not finite; the model's parameters have diverged: lower "
                "optimizer.learning_rate, or load another model"
            )
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors[:, 0], vectors[:, 1]

    def _metrics(self, anchors_ND: np.ndarray, positives_ND: np.ndarray) -> dict[str, float]:
        values, scores = {}, self.pairs.labels
        kept = np.ones(len(self.pairs), bool)
        if scores is not None:
            cosine_N = np.sum(anchors_ND * positives_ND, axis=1)
            values["spearman"] = spearman(cosine_N, scores)
            values["pearson"] = pearson(cosine_N, scores)
            least = self.config.contrastive.positive_from
            kept = np.zeros_like(kept) if least is None else scores >= least
        if kept.any():
            ids_N2 = self.pairs.text_ids.reshape(-1, 2)[kept]
            temperature = self.config.contrastive.temperature
            values |= retrieval(anchors_ND[kept], positives_ND[kept], ids_N2, temperature)
        return values


def retrieval(
    anchors_ND: np.ndarray, positives_ND: np.ndarray, ids_N2: np.ndarray, temperature: float
) -> dict[str, float]:
    """`retrieval_accuracy` and `loss` of anchors among all positives, as `losses.info_nce` has it.

    ids_N2: the content of anchor and positive as a number.
    """
    count, right, total = len(anchors_ND), 0, 0.0
    positives: dict[int, set[int]] = {}
    for anchor, positive in ids_N2.tolist():
        positives.setdefault(anchor, set()).add(positive)
    for start in range(0, count, BLOCK):
        own = np.arange(start, min(start + BLOCK, count))
        logits_BN = anchors_ND[own] @ positives_ND.T / temperature
        own_B = logits_BN[own - start, own]
        same_BN = (ids_N2[own, :, None] == ids_N2[:, 1]).any(axis=1)
        for b, anchor in enumerate(ids_N2[own, 0].tolist()):
            if len(positives[anchor]) > 1:
                same_BN[b] |= np.isin(ids_N2[:, 1], list(positives[anchor]))
        logits_BN[same_BN] = -np.inf
        logits_BN[own - start, own] = own_B
        best_B = logits_BN.max(axis=1)
        right += int((own_B >= best_B).sum())
        total += float(np.sum(best_B + np.log(np.exp(logits_BN - best_B[:, None]).sum(1)) - own_B))
    return {"retrieval_accuracy": right / count, "loss": total / count}
