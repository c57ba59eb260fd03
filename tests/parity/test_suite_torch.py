"""The benchmark suite at toy size: the same loss on both sides, and what its rows say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the installed package

from benchmarks import suite  # noqa: E402
from benchmarks.finetune import compare  # noqa: E402
from benchmarks.workers import ON_CPU, BenchmarkError  # noqa: E402
from benchmarks.workloads import SUITES, VARIANTS  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_processes")


@pytest.mark.slow
def test_a_masked_lm_step_packed_and_as_of_2021_beside_pytorch(tmp_path):
    output = tmp_path / "suite.jsonl"
    names = ["jaxllm-2021", "jaxllm", "torch-eager"]
    command = [sys.executable, "-m", "benchmarks", "run", "--suite", "toy", "--output", str(output)]
    command += ["--only", "toy-mlm", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["variant"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert list(rows) == names
    real = {name: [t["real_tokens"] for t in row["timings"]] for name, row in rows.items()}
    assert real["jaxllm-2021"] == real["torch-eager"]
    assert all(len(set(of_repeats)) == 1 for of_repeats in real.values())
    assert sum(real["jaxllm"]) > 1.2 * sum(real["torch-eager"])
    for row in rows.values():
        assert len(row["timings"]) == 3
        assert {t["padded_tokens"] for t in row["timings"]} == {2 * 4 * 32}
        assert row["lowest"] <= row["real_tokens_per_second"] <= row["highest"]
        assert row["gate"].keys() == {*names}
        assert row["gate"]["jaxllm"]["loss"] == pytest.approx(4.6, abs=0.2)
        assert 0 <= row["other_load"] < 1
        assert row["peak_memory"] > 2**26
    assert "| jaxllm | " in done.stdout


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A session whose two sides agreed, and what jaxllm computed."""
    folder = tmp_path_factory.mktemp("suite")
    session = suite.Session("encode", SUITES["toy"].workloads["toy-encode"], folder, ON_CPU, None)
    session.start()
    return session, session.gate(["jaxllm-padded", "torch-eager"])["jaxllm-padded"]


@pytest.mark.slow
def test_other_weights_on_one_side_are_refused(encoded):
    from safetensors.numpy import load_file, save_file

    session, ours = encoded
    path = Path(session.job.model) / "model.safetensors"
    weights = load_file(path)
    last = "encoder.layer.1.output.LayerNorm.weight"
    save_file({**weights, last: 1.01 * weights[last]}, path, metadata={"format": "pt"})
    job = replace(session.job, action="gate", variant=VARIANTS["torch-eager"])
    with pytest.raises(BenchmarkError, match="do not compute the same outputs"):
        compare({"ours": ours, "torch": session.call("torch", job)}, "ours", "torch", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy-classify", "toy-modernbert", "toy-causal"])
def test_both_sides_compute_the_same(name, tmp_path):
    session = suite.Session(name, SUITES["toy"].workloads[name], tmp_path, ON_CPU, None)
    session.start()
    gate = session.gate([name for name in SUITES["toy"].variants if name != "flax"])
    assert gate["jaxllm"].keys() == gate["torch-eager"].keys() == {"loss", "grad_norm"}
    old = ["jaxllm-2021", "jaxllm-full-head"] if name == "toy-modernbert" else []
    assert list(gate) == ["torch-eager", *old, "jaxllm"]
