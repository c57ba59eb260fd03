"""Weights from and to other libraries' files: find, read, map, write."""

from jaxllm.pretrained.bert import BERT
from jaxllm.pretrained.distilbert import DISTILBERT
from jaxllm.pretrained.electra import ELECTRA
from jaxllm.pretrained.modernbert import MODERNBERT
from jaxllm.pretrained.names import Family
from jaxllm.pretrained.roberta import ROBERTA, XLM_ROBERTA

# transformers' model_type -> its table
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
}
