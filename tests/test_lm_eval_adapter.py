"""The adapter for EleutherAI's harness, without the harness: what it is asked, and what it says."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import jaxllm
from jaxllm.errors import InputError
from jaxllm.prediction.likelihood import Judge, Rows

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks are not part of the package
NAME = "benchmarks.lm_eval_adapter"
BEGIN, END, A, B, DOT = range(5)


def tokenizer():
    """A token a letter; texts begin with <s>."""
    vocabulary = {"<s>": BEGIN, "</s>": END, "a": A, "b": B, ".": DOT}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def count(batch):
    """Each token that is judged has the log-probability -1, and b is greedy."""
    weights, labels = batch["label_weights"], batch["labels"]
    return -weights.sum(1), ((labels == B) | (weights == 0)).all(1)


class Model:
    """Counts what it is asked for."""

    def __init__(self):
        self.calls = []

    def judge(self, *, max_length, batch_size):
        return Judge(count, Rows(tokenizer(), max_length or 8), batch_size)

    def generate(self, prompts, **options):
        """Behind each prompt: ab.</s>b"""
        self.calls.append((prompts, options))
        width = max(map(len, prompts))
        rows = [[END] * (width - len(p)) + p + [A, B, DOT, END, B] for p in prompts]
        return np.array(rows)


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's module, beside as much of the harness as it takes."""
    base = ModuleType("lm_eval.api.model")
    base.LM = type("LM", (), {"__init__": lambda self: None})
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    monkeypatch.setattr(
        jaxllm.AutoModelForCausalLM, "from_pretrained", lambda path, *, dtype: Model()
    )
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME)


def asked(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(
        ImportError, match=r"lm_eval is not installed, .*: pip install -e '\.\[bench\]'"
    ):
        importlib.import_module(NAME)


def test_scores(adapter):
    model = adapter.JaxLM("m", batch_size="2", device="cpu", max_batch_size=None)
    pairs = asked(("a", "bb"), ("", "a"), ("ab", "b"))
    assert model.loglikelihood(pairs) == [(-2.0, True), (-1.0, False), (-1.0, True)]
    # As the harness's own model does, <s> is judged behind <s>; every token once, in windows of 8.
    assert model.loglikelihood_rolling(asked(("ab" * 10,), ("a",), ("",))) == [-21.0, -2.0, -1.0]


def test_what_is_written(adapter):
    model = adapter.JaxLM("m", batch_size=2)
    until = {"until": ["."], "max_gen_toks": 5, "do_sample": False, "temperature": 0.0}
    sampled = {"until": "b", "max_gen_toks": 5, "do_sample": True, "temperature": 0.5}
    requests = asked(("aaaaaaaa", until), ("a", sampled), ("b", until), ("", {"max_gen_toks": 5}))
    assert model.generate_until(requests) == ["ab", "a", "ab", "ab."]
    greedy, drawn, other = model.model.calls
    # Room is left for what is written: the beginning of a prompt is lost.
    assert greedy[0] == [[BEGIN, B], [A, A, A]]
    assert greedy[1].pop("tokenizer").eos_token == "</s>"
    assert greedy[1] == {"max_new_tokens": 5, "stop_strings": ["."], "do_sample": False}
    assert drawn[0] == [[BEGIN, A]] * 2  # a batch has always as many rows
    assert drawn[1]["temperature"] == 0.5
    assert drawn[1]["stop_strings"] == ["b"]
    assert other[0] == [[BEGIN]] * 2
    assert other[1]["stop_strings"] is None


def test_mistakes(adapter):
    with pytest.raises(InputError, match="model_args: found peft, expected pretrained, max_length"):
        adapter.JaxLM("m", peft="x")
    with pytest.raises(InputError, match="batch_size: found 'auto', expected a number"):
        adapter.JaxLM("m", batch_size="auto")
    with pytest.raises(
        InputError, match="max_gen_toks: found 256, expected less than the 8 tokens"
    ):
        adapter.JaxLM("m").generate_until(asked(("a", {})))
