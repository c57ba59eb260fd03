"""Weights from and to other libraries' files: find, read, map, write."""

from jaxllm.pretrained.bert import BERT
from jaxllm.pretrained.modernbert import MODERNBERT
from jaxllm.pretrained.names import Family

# transformers' model_type -> its table
FAMILIES: dict[str, Family] = {"bert": BERT, "modernbert": MODERNBERT}
