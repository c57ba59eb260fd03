"""The one table of tasks."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxllm.prediction.batched import BatchSizes, Predictor
from jaxllm.prediction.causal_lm import Continuer
from jaxllm.prediction.classification import classifier
from jaxllm.prediction.embedding import embedder
from jaxllm.prediction.masked_lm import filler
from jaxllm.prediction.multiple_choice import ChoicePredictor
from jaxllm.prediction.question_answering import Answerer
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.token_classification import Tagger
from jaxllm.tasks import (
    causal_lm,
    classification,
    embedding,
    multiple_choice,
    pretraining,
    question_answering,
    tokens,
)
from jaxllm.tasks.task import Prepare


@dataclass(frozen=True)
class TaskKind:
    """A task, as model.task names it.

    Attributes:
        head: what the model that answers ends in, a key of `models.Family.heads`.
        prepare: reads the data of a configuration and fits the head to them.
        predictor: answers lines with a saved model.
    """

    head: str
    prepare: Prepare
    predictor: Callable[[SavedModel, BatchSizes], Predictor]


TASKS: dict[str, TaskKind] = {
    "sequence-classification": TaskKind(
        "sequence-classification", classification.prepare, classifier
    ),
    "token-classification": TaskKind("token-classification", tokens.prepare, Tagger.of),
    "sentence-embedding": TaskKind("base", embedding.prepare, embedder),
    "question-answering": TaskKind("question-answering", question_answering.prepare, Answerer.of),
    "multiple-choice": TaskKind("multiple-choice", multiple_choice.prepare, ChoicePredictor.of),
    "masked-lm": TaskKind("masked-lm", pretraining.prepare, filler),
    # Of a pretrained BERT and of ELECTRA's pair, what fills masks answers.
    "pretraining": TaskKind("masked-lm", pretraining.prepare, filler),
    "causal-lm": TaskKind(causal_lm.HEAD, causal_lm.prepare, Continuer.of),
}
