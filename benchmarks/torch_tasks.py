"""What each task brings to the plain PyTorch loop: features, the model's class, the metric.

As the example scripts of transformers have it: run_glue, run_ner, run_qa.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from benchmarks.recipe import Job, read_examples
from jaxllm.metrics.answers import SCORINGS, answer_metrics

Features = list[dict[str, Any]]
STRIDE, LONGEST_ANSWER = 128, 30  # jaxllm's `qa.doc_stride` and `qa.max_answer_length`


class Task(Protocol):
    """`model`: transformers' class; `collate` makes a padded batch of features.

    `softmax_over_padding`: in a padded batch the class computes another loss than without padding.
    """

    model: Any
    collate: Any
    softmax_over_padding: bool

    def features(self, path: str) -> Features:
        """Token ids and labels of a file's examples, not padded."""

    def outputs(self, output: Any) -> torch.Tensor:
        """float [B, ...] of a model's output: what `score` takes of each example."""

    def score(self, outputs: Sequence[np.ndarray], features: Features, path: str) -> float:
        """The job's metric for a file whose features gave these outputs."""


class _Tokenized:
    """The model's tokenizer, and the padding of its batches."""

    softmax_over_padding = False
    collator: Any = DataCollatorWithPadding

    def __init__(self, job: Job):
        self.tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=False)
        self.collate = self.collator(self.tokenizer)
        self.names = job.labels
        self.max_length = job.recipe.max_length


class Texts(_Tokenized):
    """Sequence classification, and regression where a job has no labels."""

    model = BertForSequenceClassification

    def features(self, path: str) -> Features:
        texts, pairs, labels = read_examples(path)
        encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length)
        ids = [self.names.index(y) if self.names else float(y) for y in labels]
        return [{**row, "labels": label} for row, label in zip(_rows(encoded), ids, strict=True)]

    def outputs(self, output: Any) -> torch.Tensor:
        return output.logits

    def score(self, outputs: Sequence[np.ndarray], features: Features, path: str) -> float:
        predicted, labels = np.array(outputs), np.array([row["labels"] for row in features])
        if self.names:
            return float((predicted.argmax(-1) == labels).mean())
        return float(np.corrcoef(predicted[:, 0], labels)[0, 1])


class Words(_Tokenized):
    """Token classification: a word is learned and judged at its first piece."""

    model = BertForTokenClassification
    collator = DataCollatorForTokenClassification

    def features(self, path: str) -> Features:
        texts, _, tags = read_examples(path)
        encoded = self.tokenizer(
            texts, is_split_into_words=True, truncation=True, max_length=self.max_length
        )
        ids = {name: i for i, name in enumerate(self.names)}
        features = _rows(encoded)
        for i, row in enumerate(features):
            first = _first_pieces(encoded.word_ids(i))
            row["labels"] = [-100 if w is None else ids[tags[i][w]] for w in first]
        return features

    def outputs(self, output: Any) -> torch.Tensor:
        return output.logits

    def score(self, outputs: Sequence[np.ndarray], features: Features, path: str) -> float:
        _, _, truth = read_examples(path)
        predicted = []
        for tags, row, logits_TC in zip(truth, features, outputs, strict=True):
            read = np.flatnonzero(np.array(row["labels"]) != -100)
            found = [self.names[i] for i in logits_TC[read].argmax(-1)]
            predicted.append(found + ["O"] * (len(tags) - len(found)))  # of words cut off
        return float(f1_score(truth, predicted, mode="strict", scheme=IOB2))


class Questions(_Tokenized):
    """Extractive question answering; a question may have no answer."""

    model = BertForQuestionAnswering
    softmax_over_padding = True

    def features(self, path: str) -> Features:
        encoded = self._windows(path)
        features = _rows(encoded)
        asked = list(_questions(path))
        for i, row in enumerate(features):
            _, _, answers = asked[encoded["overflow_to_sample_mapping"][i]]
            span = (0, 0)
            if answers:
                begin = answers[0]["answer_start"]
                span = self._tokens(encoded, i, begin, begin + len(answers[0]["text"]))
            row["start_positions"], row["end_positions"] = span
        return features

    def _windows(self, path: str) -> Any:
        questions, contexts, _ = map(list, zip(*_questions(path), strict=True))
        return self.tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=self.max_length,
            stride=STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _tokens(self, encoded: Any, i: int, begin: int, end: int) -> tuple[int, int]:
        """The tokens that hold the characters, or the first token where the window does not."""
        offsets = encoded["offset_mapping"][i]
        context = [t for t, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        if offsets[context[0]][0] > begin or offsets[context[-1]][1] < end:
            return 0, 0
        inside = [t for t in context if offsets[t][1] > begin and offsets[t][0] < end]
        return inside[0], inside[-1]

    def outputs(self, output: Any) -> torch.Tensor:
        return torch.stack([output.start_logits, output.end_logits], -1)

    def score(self, outputs: Sequence[np.ndarray], features: Features, path: str) -> float:
        encoded = self._windows(path)
        asked = list(_questions(path))
        null = np.full(len(asked), np.inf)
        best = np.full(len(asked), -np.inf)
        texts = [""] * len(asked)
        for i, scores_T2 in enumerate(outputs):
            question = encoded["overflow_to_sample_mapping"][i]
            null[question] = min(null[question], scores_T2[0].sum())
            context = np.array([t for t, s in enumerate(encoded.sequence_ids(i)) if s == 1])
            starts, ends = scores_T2[context].T
            apart = np.arange(len(context)) - np.arange(len(context))[:, None]
            allowed = (apart >= 0) & (apart < LONGEST_ANSWER)
            sums = np.where(allowed, starts[:, None] + ends, -np.inf)
            start, end = np.unravel_index(sums.argmax(), sums.shape)
            if sums[start, end] > best[question]:
                best[question] = sums[start, end]
                offsets = encoded["offset_mapping"][i]
                first, last = offsets[context[start]][0], offsets[context[end]][1]
                texts[question] = asked[question][1][first:last]
        answers = [[answer["text"] for answer in row[2]] for row in asked]
        return answer_metrics(SCORINGS["squad"], answers, texts, null - best)["best_f1"]


TASKS = {
    "sequence-classification": Texts,
    "token-classification": Words,
    "question-answering": Questions,
}


def _rows(encoded: Any) -> Features:
    names = ("input_ids", "attention_mask", "token_type_ids")
    columns = zip(*(encoded[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in columns]


def _first_pieces(words: Iterable[int | None]) -> Iterator[int | None]:
    before = None
    for word in words:
        yield None if word == before else word
        before = word


def _questions(path: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(question, context, answers; none = it has no answer)."""
    with open(path, encoding="utf-8") as file:
        articles = json.load(file)["data"]
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [] if asked.get("is_impossible") else asked["answers"]
                yield asked["question"], paragraph["context"], answers
