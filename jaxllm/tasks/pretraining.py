"""Pretraining: masked language modelling, BERT's with next-sentence pairs, and ELECTRA's."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.config.fields import Config
from jaxllm.data.documents import Documents, load_documents
from jaxllm.data.fit import check_fit
from jaxllm.data.loader import EpochExamples
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.pretraining import PretrainingExamples, special_ids
from jaxllm.errors import InputError
from jaxllm.models import Apply
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import GENERATOR, ElectraPair, OneModel, StoredModel
from jaxllm.tasks.evaluation import listed, summed
from jaxllm.tasks.task import Task, chosen_metric
from jaxllm.training import pretraining_objectives
from jaxllm.training.objectives import Batch, Metrics, Objective
from jaxllm.training.step import make_eval_step

METRIC = "masked_accuracy"  # chooses the best model where train.metric is null
_DEV_SEED = 0  # the dev part has the same masks in all runs


@dataclass(frozen=True)
class Kind:
    """What is pretrained.

    Attributes:
        head: of the model, a key of its family's heads; None = ELECTRA's two models.
        objective: the loss.
        parts: losses that are added as means, and the weights of the batch that each is a mean by;
            {} where there is one loss only.
        metrics: what the evaluation gives.
        pairs: examples are next-sentence pairs.
        masked, random: see `data.masking.Masking`.
    """

    head: str | None
    objective: Callable[[Apply], Objective]
    parts: dict[str, str]
    metrics: tuple[str, ...]
    pairs: bool = False
    masked: float = 0.8
    random: float = 0.1

    def whole_batch(self, batch: Batch) -> Batch:
        """See `train.make_train_step`."""
        if not self.parts:
            return batch
        tokens = (batch["segment_ids"] > 0).astype(jnp.float32)
        return pretraining_objectives.whole_batch_weights(
            {**batch, "token_weights": tokens}, **self.parts
        )


_SHARED = ("loss", "masked_accuracy", "perplexity")
MASKED_LM = Kind("masked-lm", pretraining_objectives.masked_lm, {}, _SHARED)
KINDS = {  # model_type -> its "pretraining"
    "bert": Kind(
        "pretraining",
        pretraining_objectives.masked_lm_and_next_sentence,
        {"masked_loss": "label_weights", "next_sentence_loss": "next_sentence_weights"},
        (*_SHARED, "masked_loss", "next_sentence_loss", "next_sentence_accuracy"),
        pairs=True,
    ),
    # 85 % and none: google-research/electra, pretrain/pretrain_helpers.py.
    "electra": Kind(
        None,
        pretraining_objectives.replaced_token_detection,
        {"masked_loss": "label_weights", "replaced_loss": "token_weights"},
        (*_SHARED, "masked_loss", "replaced_loss", "replaced_accuracy"),
        masked=0.85,
        random=0.0,
    ),
}


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    attributes = dict(config.model.config)
    sizes = attributes.pop(GENERATOR, None)
    model_config = saved or hf.load_config(config.model.path, **attributes)
    kind = _kind(config, model_config.model_type)
    model: StoredModel
    if kind.head is not None:
        model = OneModel(kind.head, model_config)
    elif path := config.model.path:
        model = ElectraPair.at(path, config.model.generator, model_config)
    else:
        model = ElectraPair(model_config, sizes)
    if kind.head is not None and sizes is not None:
        raise InputError(
            f"model.config: found generator={sizes!r}, expected none: only ELECTRA's "
            "model.task: pretraining has a generator"
        )
    if kind.head is not None and config.model.generator:
        raise InputError(
            f"model.generator: found {config.model.generator}, expected null: only ELECTRA's "
            "model.task: pretraining has a generator"
        )
    if kind.pairs and model_config.type_vocab_size < 2:
        raise InputError(
            f"model.config: found type_vocab_size {model_config.type_vocab_size}, expected two for "
            "next-sentence pairs; set it to 2, or model.task: masked-lm"
        )
    check_fit(model_config, tokenizer, config.data.max_length, pair=kind.pairs)
    special_ids(tokenizer)  # what it lacks is told before a large corpus is tokenized
    metric = chosen_metric(config, kind.metrics, METRIC)

    def examples(split: str, documents: Documents, seed: int) -> PretrainingExamples:
        return PretrainingExamples(
            documents,
            config.data if split == "train" else replace(config.data, weights=None),
            config.masking,
            tokenizer,
            seed=seed,
            pairs=kind.pairs,
            masked=kind.masked,
            random=kind.random,
        )

    train = dev = None
    read = {
        split: load_documents(config.data, split, tokenizer, words=config.masking.words)
        for split, there in (("train", saved is None), ("dev", config.data.has_dev))
        if there
    }
    warn_of_overlap(read.get("train"), read.get("dev"), "document")
    if "train" in read:
        train = examples("train", read["train"], config.train.seed)
    if "dev" in read:
        dev = examples("dev", read["dev"], _DEV_SEED).at(0)

    def evaluator(apply: Apply, mesh: Mesh) -> MaskedEvaluator:
        assert dev is not None
        objective = kind.objective(apply)

        def judged(params: Any, batch: Batch, key: jax.Array | None) -> tuple:
            return objective(params, kind.whole_batch(batch), key)

        return MaskedEvaluator(dev, config, mesh, make_eval_step(judged, mesh), kind)

    return Task(
        model=model,
        train=train,
        reads_word_table_only=False,
        objective=kind.objective,
        evaluator=None if dev is None else evaluator,
        metric=metric,
        save_extras=InputFormat.of(config).save,
        whole_batch=kind.whole_batch,
    )


def _kind(config: Config, model_type: str) -> Kind:
    if config.model.task == "masked-lm":
        return MASKED_LM
    if model_type not in KINDS:
        raise InputError(
            f"model.task: found pretraining, which there is for {' and '.join(KINDS)}, but the "
            f"model is {model_type}; set model.task: masked-lm"
        )
    return KINDS[model_type]


@dataclass(frozen=True)
class MaskedEvaluator:
    """Judges a model on the dev part, whose masks (and pairs) are always the same."""

    examples: EpochExamples
    config: Config
    mesh: Mesh
    eval_step: Callable[[Any, Batch], tuple[Metrics, Any]]
    kind: Kind

    def metrics(self, params: Any) -> dict[str, float]:
        """loss, masked_accuracy, perplexity; of several losses also each, and its accuracy.

        Perplexity is the exponential of the mean loss of masked tokens.
        """
        sums = summed(self.eval_step, params, self.examples, self.config, self.mesh)
        means = sums.means()
        if self.kind.parts:  # of the whole part; means of the batches' means are another thing
            means["loss"] = pretraining_objectives.total(means, self.kind.parts)
        means["perplexity"] = math.exp(min(means.get("masked_loss", means["loss"]), 700))
        return means

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes nothing: there are no predictions worth keeping."""
        values = self.metrics(params)
        tokens = int(np.sum(self.examples.lengths))
        return values, listed(f"{len(self.examples)} examples, {tokens} tokens", values)
