"""The public model classes; `model.PretrainedModel` is what they share."""

from jaxllm.auto.causal_lm import AutoModelForCausalLM as AutoModelForCausalLM
from jaxllm.auto.model import PretrainedModel as PretrainedModel
from jaxllm.models.outputs import EncoderOutput, HeadOutput, PretrainingOutput, SpanOutput


class AutoModel(PretrainedModel[EncoderOutput]):
    """Without a head: out.last_hidden_state [B, T, D]; out.pooler_output [B, D], or [B, P, D] at
    `head_positions`, where the family has a pooler.
    """

    task = "base"


class AutoModelForPreTraining(PretrainedModel[PretrainingOutput | HeadOutput]):
    """BERT: out.prediction_logits [B, T, V], or [B, P, V] at `head_positions`, and
    out.seq_relationship_logits [B, 2], or [B, Q, 2] at `pooled_positions`.

    ELECTRA's discriminator: out.logits [B, T], positive for a token that was replaced.
    """

    task = "pretraining"


class AutoModelForMaskedLM(PretrainedModel[HeadOutput]):
    """out.logits [B, T, V], or [B, P, V] at `head_positions`."""

    task = "masked-lm"


class AutoModelForNextSentencePrediction(PretrainedModel[HeadOutput]):
    """out.logits [B, 2], or [B, P, 2] for the segments that begin at `head_positions`."""

    task = "next-sentence"


class AutoModelForSequenceClassification(PretrainedModel[HeadOutput]):
    """out.logits [B, C], or [B, P, C] for the segments that begin at `head_positions`."""

    task = "sequence-classification"


class AutoModelForTokenClassification(PretrainedModel[HeadOutput]):
    """out.logits [B, T, C]."""

    task = "token-classification"


class AutoModelForQuestionAnswering(PretrainedModel[SpanOutput]):
    """out.start_logits and out.end_logits [B, T]. The config's num_labels is 2."""

    task = "question-answering"


class AutoModelForMultipleChoice(PretrainedModel[HeadOutput]):
    """Takes ids and masks [B, C, T]: out.logits [B, C]. Or packed choices [B, T]: out.logits [B, P]
    for the segments that begin at `head_positions`.
    """

    task = "multiple-choice"
