"""DistilBERT (Sanh et al., 2019): BERT without token types and pooler.

Equal in numbers to transformers' PyTorch classes. `config` is a transformers DistilBertConfig.
`token_type_ids` have no effect.
"""

from typing import Any

from jaxllm.models import heads
from jaxllm.models.encoder import encoder_family
from jaxllm.models.family import POSITIONS
from jaxllm.models.spec import EncoderSpec
from jaxllm.names.distilbert import DISTILBERT


def spec(config: Any) -> EncoderSpec:
    return EncoderSpec.of(
        config,
        intermediate_size=config.hidden_dim,
        type_vocab_size=0,
        hidden_act=config.activation,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        layer_norm_eps=1e-12,
        classifier_dropout=config.seq_classif_dropout,
        token_dropout=config.dropout,
        choice_dropout=config.seq_classif_dropout,
        span_dropout=config.qa_dropout,
        mlm_act=config.activation,
        pooler_act="relu",
    )


HEADS = {
    "base": heads.Bare,
    "masked-lm": heads.MaskedLM,
    "sequence-classification": heads.PooledClassification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
    "multiple-choice": heads.MultipleChoice,
}
FAMILY = encoder_family(spec, HEADS, DISTILBERT, ids=POSITIONS)
