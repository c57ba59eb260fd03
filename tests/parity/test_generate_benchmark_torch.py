"""benchmarks.generate from end to end, at toy size; needs PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_both_sides_write_the_same_and_are_timed(tmp_path, monkeypatch):
    """Beams of one prompt, and the output has a row for each variant."""
    # Steps this small take 20 times as long where two threads of a busy machine share them.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.generate", "--shape", "tiny", "--repeats", "2"]
    command += ["--only", "beam-4-batch-1", "--variants", "jaxllm", "torch-eager"]
    done = subprocess.run(
        [*command, "--output", str(rows)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = map(json.loads, rows.read_text().splitlines())
    assert [ours["variant"], theirs["variant"]] == ["jaxllm", "torch-eager"]
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 2
    assert ours["compiled"] > 0
    assert ours["compiled_later"] == 0
    assert "| beam-4-batch-1 | torch-eager |" in done.stdout
    assert done.stdout.count("1.00 |") >= 1
