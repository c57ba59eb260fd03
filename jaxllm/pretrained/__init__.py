"""Weights from and to other libraries' files: find, read, map, write."""

from jaxllm.pretrained.bert import BERT
from jaxllm.pretrained.names import Family

FAMILIES: dict[str, Family] = {"bert": BERT}  # transformers' model_type -> its table
