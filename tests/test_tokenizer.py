"""Tokenizers from disk."""

import io
import json
import sys

import pytest

from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError


def test_code_of_a_tokenizer_is_refused_without_a_question(tmp_path, monkeypatch):
    """transformers would ask whether to run it, and take the answer from standard input."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "own.py").write_text("open('ran', 'w')\n")
    described = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    monkeypatch.chdir(tmp_path)
    answers = io.StringIO("yes\n" * 9)
    monkeypatch.setattr(sys, "stdin", answers)
    with pytest.raises(InputError, match=r"auto_map\), and code of a checkpoint is never run"):
        load_tokenizer(tmp_path)
    assert answers.tell() == 0
    assert not (tmp_path / "ran").exists()
