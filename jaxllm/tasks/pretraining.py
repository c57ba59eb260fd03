"""Pretraining: masked language modelling, and BERT's with next-sentence pairs."""

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm import objectives
from jaxllm.config_fields import Config
from jaxllm.data.documents import load_documents
from jaxllm.data.loader import EpochExamples, eval_batches
from jaxllm.data.pretraining import PretrainingExamples
from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.errors import InputError
from jaxllm.files import write_atomic
from jaxllm.metrics import Sums
from jaxllm.objectives import Apply, Batch
from jaxllm.pretrained import hf
from jaxllm.sharding import batch_sharding, batch_shards
from jaxllm.tasks.inputs import InputFormat
from jaxllm.tasks.model import check_fit
from jaxllm.tasks.task import Task
from jaxllm.train import make_eval_step

logger = logging.getLogger("jaxllm")

METRIC = "masked_accuracy"  # chooses the best model where train.metric is null
_DEV_SEED = 0  # the dev part has the same masks in all runs


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    head = config.model.task
    model_config = saved or hf.load_config(config.model.path, **config.model.config)
    pairs = head == "pretraining"
    if pairs and model_config.model_type != "bert":
        raise InputError(
            f"model.task: found {head}, which is next-sentence pairs and masks for bert, but the "
            f"model is {model_config.model_type}; set model.task: masked-lm"
        )
    check_fit(config, model_config, tokenizer)
    if vocabulary_size(tokenizer) < model_config.vocab_size:
        logger.warning(
            "the model has %d tokens (vocab_size), the tokenizer %d; the others are never seen",
            *(model_config.vocab_size, vocabulary_size(tokenizer)),
        )

    def examples(split: str, seed: int) -> PretrainingExamples:
        documents = load_documents(config.data, split, tokenizer)
        return PretrainingExamples(documents, config.data, tokenizer, seed=seed, pairs=pairs)

    train = examples("train", config.train.seed) if saved is None else None
    dev = examples("dev", _DEV_SEED).at(0) if config.data.has_dev else None
    metric = config.train.metric or METRIC
    known = ["loss", "masked_accuracy", "perplexity"]
    known += ["masked_loss", "next_sentence_loss", "next_sentence_accuracy"] if pairs else []
    if metric not in known:
        raise InputError(f"train.metric: found {metric!r}, expected one of {', '.join(known)}")
    objective, whole_batch = objectives.masked_lm, _as_it_is
    if pairs:
        objective = objectives.masked_lm_and_next_sentence
        whole_batch = partial(
            objectives.whole_batch_weights,
            masked_loss="label_weights",
            next_sentence_loss="next_sentence_weights",
        )

    def evaluator(apply: Apply, mesh: Mesh) -> MaskedEvaluator:
        assert dev is not None
        plain = objective(apply)

        def judged(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
            return plain(params, whole_batch(batch), key)

        return MaskedEvaluator(dev, config, mesh, make_eval_step(judged, mesh))

    return Task(
        head=head,
        model_config=model_config,
        train=train,
        objective=objective,
        evaluator=None if dev is None else evaluator,
        metric=metric,
        save_extras=InputFormat.of(config).save,
        reads_word_table_only=False,
        whole_batch=whole_batch,
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


@dataclass(frozen=True)
class MaskedEvaluator:
    """Judges a model on the dev part, whose masks (and pairs) are always the same."""

    examples: EpochExamples
    config: Config
    mesh: Mesh
    eval_step: Any  # params, batch -> metrics, ()

    def metrics(self, params: Any) -> dict[str, float]:
        """loss, masked_accuracy, perplexity; with pairs the loss and accuracy of each part.

        Perplexity is the exponential of the mean loss of masked tokens.
        """
        shards = batch_shards(self.mesh)
        batches = eval_batches(
            self.examples,
            data=self.config.data,
            batch_rows=-(-self.config.train.eval_batch_size // shards) * shards,
            shards=shards,
            sharding=batch_sharding(self.mesh),
        )
        sums = Sums()
        pending: dict[str, Any] = {}
        for arrays, _ in batches:
            dispatched, _ = self.eval_step(params, arrays)
            sums.add(pending)  # the previous batch, while the device computes this one
            pending = dispatched
        sums.add(pending)
        means = sums.means()
        if "masked_loss" in means:
            means["loss"] = means["masked_loss"] + means["next_sentence_loss"]
        means["perplexity"] = math.exp(min(means.get("masked_loss", means["loss"]), 700))
        return means

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes `report.txt`; there are no predictions worth keeping."""
        values = self.metrics(params)
        tokens = int(np.sum(self.examples.lengths))
        lines = [f"{len(self.examples)} examples, {tokens} tokens"]
        lines += [f"{name} {value:.4f}" for name, value in values.items()]
        text = "\n".join(lines) + "\n"
        if jax.process_index() == 0:
            write_atomic(directory / "report.txt", text)
        return values, text
