"""The frame of benchmarks.generate; the comparison itself, with PyTorch, is in tests/parity."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the installed package

from benchmarks import generate  # noqa: E402
from benchmarks.workers import BenchmarkError  # noqa: E402


def row(variant, seconds, **more):
    return {
        "workload": "batch-8",
        "variant": variant,
        "batch": 8,
        "new_tokens": 64,
        "seconds": seconds,
        "tokens_per_second": 8 * 64 / sorted(seconds)[len(seconds) // 2],
        "first_token_seconds": [0.3, 0.1, 0.2],
        "peak_memory": 2**30,
        "compiled": 3,
        "compiled_later": 0,
        **more,
    }


def test_a_row_says_how_many_times_as_fast_as_eager():
    lines = generate.table([row("jaxllm", [1.0, 2.0, 4.0]), row("torch-eager", [4.0, 5.0, 8.0])])
    ours, theirs = lines.splitlines()[2:]
    assert (
        ours == "| batch-8 | jaxllm | 256.0 (128.0 to 512.0) | 2.50 | 200 ms | 1,024 MiB "
        "| 3, later 0 |"
    )
    assert "102.4 (64.0 to 128.0) | 1.00 |" in theirs


def test_a_table_without_eager_has_no_ratio():
    line = generate.table([row("torch-static", [1.0])]).splitlines()[2]
    assert "512.0 (512.0 to 512.0) |  | 200 ms" in line


def test_different_tokens_are_refused():
    calls = {"jaxllm": [{"sequences": [[1, 2]]}], "torch-eager": [{"sequences": [[1, 2]]}]}
    generate.check(calls, "batch-8")
    calls["torch-static"] = [{"sequences": [[1, 3]]}]
    with pytest.raises(BenchmarkError, match="batch-8: torch-static and jaxllm write different"):
        generate.check(calls, "batch-8")
