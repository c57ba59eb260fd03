"""Throughput: formulas against numbers worked out elsewhere, and the clock."""

import os
import time

import numpy as np
import pytest

from jaxllm import throughput
from jaxllm.throughput import StepClock


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
def test_encoder_flops_per_token(layers, width, length, fraction, million):
    flops = throughput.encoder_flops_per_token(
        layers=layers,
        width=width,
        mlp_width=4 * width,
        attended=length,
        outputs=30522,
        head_fraction=fraction,
    )
    assert flops / 1e6 == pytest.approx(million, abs=0.6)


def test_effective_length_is_what_a_token_attends_to():
    assert throughput.effective_length([128, 128]) == 128
    assert throughput.effective_length([1, 3]) == 2.5  # one token sees 1, three see 3
    assert throughput.effective_length([]) == 0


def test_mfu():
    peak = throughput.peak_flops("NVIDIA H200")
    assert peak == 989.4e12
    assert throughput.mfu(907_000, 545e6, peak) == pytest.approx(0.5, abs=0.001)
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
    now[0] += 3
    clock.lap()
    assert (clock.seconds, clock.compile_seconds, clock.laps) == (105.0, 12.0, [2.0, 3.0])


def test_each_batch_shape_is_new_once():
    clock = StepClock()
    short, long = {"ids": np.zeros((2, 4))}, {"ids": np.zeros((2, 8))}
    assert [clock.is_new(x) for x in (short, long, short, long)] == [True, True, False, False]
