"""RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2020): BERT with other positions.

Equal in numbers to transformers' PyTorch classes. `config` is a transformers RobertaConfig or
XLMRobertaConfig. Token types are one, as a rule: leave `token_type_ids` out.
"""

from typing import Any

from jaxllm.errors import InputError
from jaxllm.models import heads
from jaxllm.models.encoder import encoder_family
from jaxllm.models.spec import EncoderSpec, head_dropout
from jaxllm.names.roberta import ROBERTA, XLM_ROBERTA


def spec(config: Any) -> EncoderSpec:
    padding, positions = config.pad_token_id, config.max_position_embeddings
    if padding is None or not 0 <= padding < min(config.vocab_size, positions - 1):
        raise InputError(
            f"pad_token_id: found {padding}, expected 1, as in published models, or another id "
            f"below vocab_size={config.vocab_size} and max_position_embeddings - 1 = "
            f"{positions - 1}: positions count from the id after it"
        )
    rate = head_dropout(config)
    return EncoderSpec.of(
        config,
        padding_idx=config.pad_token_id,
        classifier_dropout=rate,
        token_dropout=rate,
        choice_dropout=config.hidden_dropout_prob,
        mlm_act="gelu",
        is_decoder=config.is_decoder,
    )


HEADS = {
    "base": heads.Pooled,
    "masked-lm": heads.MaskedLM,
    "causal-lm": heads.CausalLM,
    "sequence-classification": heads.Classification,
    "token-classification": heads.TokenClassification,
    "question-answering": heads.QuestionAnswering,
    "multiple-choice": heads.MultipleChoice,
}
FAMILY = encoder_family(spec, HEADS, ROBERTA)
XLM_FAMILY = encoder_family(spec, HEADS, XLM_ROBERTA)
