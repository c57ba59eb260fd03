"""Throughput: formulas against numbers worked out elsewhere, and the clock."""

import os
import time

import numpy as np
import pytest
from transformers import BertConfig, ElectraConfig

from jaxllm.data.corpus import ReadReport
from jaxllm.data.groups import Groups
from jaxllm.metrics import throughput
from jaxllm.metrics.flops import effective_length, training_flops_per_token
from jaxllm.metrics.throughput import StepClock
from jaxllm.models import Compute, module_parts
from jaxllm.pretrained.storage import ElectraPair


@pytest.mark.parametrize(
    ("layers", "width", "length", "fraction", "million"),
    [
        # BERT-base and -large with the masked-LM head on 15 % of the tokens, then on all.
        (12, 768, 128, 0.15, 545),
        (12, 768, 512, 0.15, 588),
        (12, 768, 128, 1.0, 668),
        (24, 1024, 512, 0.15, 1992),
        (24, 1024, 128, 1.0, 2044),
    ],
)
def test_training_flops_per_token(layers, width, length, fraction, million):
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    _, abstract = module_parts(config, "masked-lm")
    lengths = np.full(3, length)
    flops = training_flops_per_token(abstract, config, "masked-lm", lengths, masked=fraction)
    assert flops / 1e6 == pytest.approx(million, abs=0.6)


TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
}


@pytest.mark.parametrize(
    ("head", "products"),
    [
        # Texts of 4 and 12 tokens: one in 8 tokens stands for a text; one in 4 is masked.
        ("base", 0),
        ("sequence-classification", (8 * 8 + 8 * 3) / 8),
        ("multiple-choice", (8 * 8 + 8) / 8),
        ("token-classification", 8 * 3),
        ("masked-lm", (8 * 8 + 8 * 50) / 4),
        ("pretraining", (8 * 8 + 8 * 50) / 4 + (8 * 8 + 8 * 2) / 8),
    ],
)
def test_a_head_is_counted_for_the_tokens_that_it_is_about(head, products):
    config = BertConfig(**TINY, num_labels=3)
    _, abstract = module_parts(config, head)
    found = training_flops_per_token(abstract, config, head, np.array([4, 12]), masked=0.25)
    body = 2 * (4 * 8 * 8 + 2 * 8 * 16)
    assert found == 6 * (body + products) + 12 * 2 * 8 * 10  # a token sees 10, on average


def test_the_generator_of_electra_is_counted():
    generator = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 8}
    config = ElectraConfig(**TINY, embedding_size=2)
    pair = ElectraPair(config, generator)
    _, abstract = pair.parts(Compute())
    lengths = np.array([4, 12])
    found = training_flops_per_token(abstract, config, pair.head, lengths, masked=0.25)
    body = 2 * 8 + 2 * (4 * 8 * 8 + 2 * 8 * 16) + 8 * 8 + 8 * 1
    small = 2 * 4 + 2 * (4 * 4 * 4 + 2 * 4 * 8) + (4 * 2 + 2 * 50) / 4
    assert found == 6 * (body + small) + 12 * 2 * (8 + 4) * 10


def test_texts_of_a_group_attend_to_themselves_alone():
    offsets = np.array([0, 3, 8, 9, 11])
    none = np.zeros(0)
    pairs = Groups(none, none, offsets, None, np.arange(2), ReadReport(), width=2)
    assert pairs.lengths.tolist() == [8, 3]
    assert pairs.text_lengths.tolist() == [3, 5, 1, 2]


def test_effective_length_is_what_a_token_attends_to():
    assert effective_length([128, 128]) == 128
    assert effective_length([1, 3]) == 2.5  # one token sees 1, three see 3
    assert effective_length([]) == 0


def test_mfu():
    peak = throughput.peak_flops("NVIDIA H200")
    assert peak == 989.4e12
    full = throughput.tokens_per_second_at_peak(545e6, "NVIDIA H200", 4)
    assert 4 * 907_000 / full == pytest.approx(0.5, abs=0.001)
    assert throughput.tokens_per_second_at_peak(545e6, "cpu", 4) is None
    assert throughput.peak_flops("TPU v5 lite") == 197e12
    assert throughput.peak_flops("cpu") is None


def test_percentiles_are_times_that_occurred():
    seconds = [float(x) for x in range(100, 0, -1)]
    assert throughput.percentiles(seconds) == {50: 50.0, 90: 90.0, 99: 99.0}
    assert throughput.percentiles([2.0]) == {50: 2.0, 90: 2.0, 99: 2.0}
    assert throughput.percentiles([]) == {}


def test_tokens_per_second():
    assert throughput.tokens_per_second(10, 4.0) == 2.5
    assert throughput.tokens_per_second(10, 0.0) == 0.0


def test_peak_host_memory_grows_with_what_is_held():
    before = throughput.peak_host_memory_bytes()
    held = np.ones(before // 8 + 20_000_000)  # more than the peak so far
    assert throughput.peak_host_memory_bytes() > before + 100_000_000
    assert held.nbytes > before
    assert before < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_clock_counts_steps_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(seconds=100.0, compile_seconds=5.0)
    clock.start()
    with clock.compiling():
        now[0] += 7
    now[0] += 2
    clock.lap()
    clock.stop()
    now[0] += 50  # an evaluation
    clock.start()
    clock.start()  # once is enough
    with clock.paused():
        now[0] += 11
    now[0] += 3
    clock.lap()
    assert (clock.seconds, clock.compile_seconds, clock.laps) == (105.0, 12.0, [2.0, 3.0])


def test_each_batch_shape_is_new_once():
    clock = StepClock()
    short, long = {"ids": np.zeros((2, 4))}, {"ids": np.zeros((2, 8))}
    assert [clock.is_new(x) for x in (short, long, short, long)] == [True, True, False, False]
