"""Causal language modelling: of every token of a document, what comes next."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxllm import models
from jaxllm.config.fields import Config
from jaxllm.data.conversations import Conversations, load_conversations
from jaxllm.data.documents import Documents, load_documents
from jaxllm.data.fit import check_fit
from jaxllm.data.next_tokens import EpochExamples, NextTokenExamples, document_ids
from jaxllm.data.overlap import warn_of_overlap
from jaxllm.data.tokenizer import vocabulary_size
from jaxllm.errors import InputError
from jaxllm.models import Apply
from jaxllm.prediction.inputs import InputFormat
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import OneModel
from jaxllm.tasks.evaluation import listed, summed
from jaxllm.tasks.task import Task, chosen_metric
from jaxllm.training.next_tokens import causal_lm
from jaxllm.training.objectives import Batch, Metrics
from jaxllm.training.step import make_eval_step

logger = logging.getLogger("jaxllm")

HEAD = "causal-lm"
_METRICS = ("loss", "perplexity", "bits_per_byte", "accuracy")


def prepare(config: Config, tokenizer: Any, *, saved: Any = None) -> Task:
    """The task on a configuration's data, see `task.Prepare`."""
    begin, end = document_ids(tokenizer)  # a missing one is told before a large corpus is read
    attributes = dict(config.model.config)
    if config.model.path is None:  # what follows from the tokenizer need not be said
        size = vocabulary_size(tokenizer)
        own = {"vocab_size": size, "bos_token_id": begin, "eos_token_id": end}
        attributes = own | attributes
    model_config = saved or hf.load_config(config.model.path, **attributes)
    _check_head(config, model_config)
    check_fit(model_config, tokenizer, config.data.max_length, pair=False)
    replies = config.lm.chat or config.data.text_pair is not None
    metrics = (*_METRICS, "exact_match") if replies else _METRICS
    metric = chosen_metric(config, metrics, "loss")
    there = {"train": saved is None, "dev": config.data.has_dev}
    splits = [split for split, is_there in there.items() if is_there]
    train, windows = (_conversations if replies else _documents)(config, tokenizer, splits)

    def evaluator(apply: Apply, mesh: Mesh) -> NextTokenEvaluator:
        assert windows is not None
        objective = causal_lm(apply, vocabulary=model_config.vocab_size, replies=replies)
        step = make_eval_step(objective, mesh)
        return NextTokenEvaluator(windows, config, mesh, step)

    return Task(
        model=OneModel(HEAD, model_config),
        train=train,
        reads_word_table_only=False,
        objective=partial(
            causal_lm,
            vocabulary=model_config.vocab_size,
            label_smoothing=config.train.label_smoothing,
            z_loss=config.lm.z_loss,
        ),
        evaluator=None if windows is None else evaluator,
        metric=metric,
        save_extras=InputFormat.of(config).save,
    )


def _documents(config: Config, tokenizer: Any, splits: list[str]) -> tuple[Any, Any]:
    """(what to train on, what to judge with), each None where it is not among `splits`."""
    read = {split: load_documents(config.data, split, tokenizer, verbatim=True) for split in splits}
    warn_of_overlap(read.get("train"), read.get("dev"), "document")
    train = windows = None
    if "train" in read:
        seed = config.train.seed
        train = NextTokenExamples(read["train"], config.data, config.lm, tokenizer, seed=seed)
    if "dev" in read:
        data = replace(config.data, weights=None)
        dev = NextTokenExamples(read["dev"], data, config.lm, tokenizer, seed=0)
        windows = dev.windows(config.lm.stride or data.max_length)
        _warn_of_unknown(read["dev"], tokenizer)
    return train, windows


def _conversations(config: Config, tokenizer: Any, splits: list[str]) -> tuple[Any, Any]:
    """As `_documents`, where replies are learned."""
    chat = config.lm.chat
    read = {split: load_conversations(config.data, split, tokenizer, chat=chat) for split in splits}
    train, dev = read.get("train"), read.get("dev")
    warn_of_overlap(train, dev, "conversation")
    return train, dev


def _check_head(config: Config, model_config: Any) -> None:
    """Refuses an encoder, which sees what it would be asked for."""
    kind = model_config.model_type
    able = [name for name, family in models.FAMILIES.items() if HEAD in family.heads]
    way_out = f"take one of {', '.join(able)}"
    if kind in able:
        # Of the families with this head, those that fill masks, too, are encoders by default.
        masked = "masked-lm" in models.family_of(model_config).heads
        if not masked or model_config.is_decoder:
            return
        way_out = "set is_decoder: true in model.config, take a model such as gpt2"
    raise InputError(
        f"model.task: found causal-lm, but the model is {kind}, an encoder, whose tokens see what "
        f"comes next; {way_out}, or set model.task: masked-lm"
    )


def _warn_of_unknown(documents: Documents, tokenizer: Any) -> None:
    """What the vocabulary has no token for is one unknown token, which is easily guessed."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in document_ids(tokenizer):  # as in GPT-2, which spells all text
        return
    count = sum(
        int((shard.tokens[: shard.lines[shard.documents[-1]]] == unknown).sum())
        for shard in documents.shards
    )
    if count:
        logger.warning(
            "data.dev: %d of %d tokens are unknown to the tokenizer (%s): the metrics tell nothing "
            "of how well this text is predicted. Train the tokenizer on more text",
            *(count, documents.size, tokenizer.unk_token),
        )


@dataclass(frozen=True)
class NextTokenEvaluator:
    """Judges a model on the dev part: each token once, see `NextTokenExamples.windows`."""

    examples: EpochExamples | Conversations
    config: Config
    mesh: Mesh
    eval_step: Callable[[Any, Batch], tuple[Metrics, Any]]

    def metrics(self, params: Any) -> dict[str, float]:
        """loss, the mean over all tokens and ends of documents; perplexity, its exponential;
        accuracy; bits_per_byte, of the text without its ends, in UTF-8. Of replies also
        exact_match, the share of the conversations whose replies, ends included, greedy decoding
        would have written.

        Raises:
            RuntimeError: a token was not judged exactly once.
        """
        sums = summed(self.eval_step, params, self.examples, self.config, self.mesh)
        tokens, found = self.examples.text_tokens, sums.weight("text_loss")
        if found != tokens:
            raise RuntimeError(f"evaluation must judge each of {tokens} tokens once, not {found:g}")
        means = sums.means()
        bits = means.pop("text_loss") * tokens / math.log(2)
        means["perplexity"] = math.exp(min(means["loss"], 700))
        means["bits_per_byte"] = bits / self.examples.text_bytes
        return means

    def write(self, params: Any, directory: Path) -> tuple[dict[str, float], str]:
        """Writes nothing: there are no predictions worth keeping."""
        judged = f"{self.examples.described}, {self.examples.text_bytes} bytes"
        values = self.metrics(params)
        return values, listed(judged, values)
