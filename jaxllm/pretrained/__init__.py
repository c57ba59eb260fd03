"""Weights from and to other libraries' files: find, read, map, write."""

from jaxllm.names.bert import BERT
from jaxllm.names.distilbert import DISTILBERT
from jaxllm.names.electra import ELECTRA
from jaxllm.names.modernbert import MODERNBERT
from jaxllm.names.roberta import ROBERTA, XLM_ROBERTA
from jaxllm.names.table import Family

# transformers' model_type -> its table
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
}
