"""benchmarks.finetune from end to end, at toy size; needs PyTorch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the installed package

from benchmarks import finetune  # noqa: E402
from benchmarks.examples import labelled  # noqa: E402
from benchmarks.recipe import Job  # noqa: E402
from benchmarks.workers import BenchmarkError  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("quick_processes")]
pytest.importorskip("torch", reason="the baseline needs PyTorch: install the parity extra")


@pytest.fixture(scope="module")
def toy(tmp_path_factory, tiny_bert_config, tiny_tokenizer_dir) -> dict[str, Path]:
    """A random model with its tokenizer (no classifier head), and two files of sentences."""
    import torch
    from transformers import BertModel

    directory = tmp_path_factory.mktemp("toy")
    vocabulary = (tiny_tokenizer_dir / "vocab.txt").read_text(encoding="utf-8")
    values = {**tiny_bert_config.to_dict(), "vocab_size": len(vocabulary.splitlines())}
    values["max_position_embeddings"] = 128  # the longest rows of benchmarks.tasks
    values["initializer_range"] = 0.1  # else a layer of so small a model hardly moves the loss
    torch.manual_seed(0)
    model = BertModel(type(tiny_bert_config)(**values))
    model.save_pretrained(directory / "model")
    (directory / "model" / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    rng = np.random.default_rng(0)
    words = [word for word in vocabulary.split() if word.isalpha()]
    for name, count in (("train", 200), ("dev", 50)):
        lines = ["sentence\tlabel\n"]
        for _ in range(count):
            label = int(rng.integers(2))
            text = [str(word) for word in rng.choice(words, int(rng.integers(1, 20)))]
            lines.append(f"{' '.join([*text, ('bad', 'good')[label]])}\t{label}\n")
        (directory / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return {name: directory / name for name in ("model", "train.tsv", "dev.tsv")}


@pytest.mark.slow
def test_variants_run_on_the_same_rows_and_end_in_a_table(toy, tmp_path):
    output = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "benchmarks.finetune", "--model", str(toy["model"])]
    command += ["--train", str(toy["train.tsv"]), "--dev", str(toy["dev.tsv"])]
    command += ["--examples", "192", "--seeds", "1", "--output", str(output)]
    variants = ["jaxllm-float32", "torch-float32", "torch-bfloat16-fused"]
    done = subprocess.run([*command, "--only", *variants], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {r["variant"]: r for r in map(json.loads, output.read_text().splitlines())}
    assert list(rows) == variants
    assert all(f"| {name} |" in done.stdout for name in rows)
    ours, torch = rows["jaxllm-float32"], rows["torch-float32"]
    assert torch["steps"] == 6
    assert ours["steps"] in range(5, 9)  # the same up to packing
    assert ours["compile_seconds"] > 0
    for row in rows.values():
        assert row["timed_steps"] == row["steps"] - row["steps"] // 2
        assert 0 < row["timed_real_tokens"] <= row["timed_padded_tokens"]
        assert 0 <= row["accuracy"] <= 1
        assert 50 * 2**20 < row["peak_memory_in_training"] <= row["peak_memory"]
        assert row["train_loss"] == pytest.approx(np.log(2), abs=0.2)
        assert row["gate"]["torch"]["grad_norm"] > 0
    assert rows["torch-bfloat16-fused"]["train_loss"] != torch["train_loss"]


@pytest.mark.slow
def test_a_task_with_pairs_and_numbers_runs_on_both_sides(toy, tmp_path):
    rng = np.random.default_rng(0)
    words = [w for w in (toy["model"] / "vocab.txt").read_text().split() if w.isalpha()]
    (tmp_path / "stsb").mkdir()
    for part, count in (("train", 128), ("dev", 40)):
        lines = []
        for _ in range(count):
            first, second = (" ".join(rng.choice(words, int(rng.integers(1, 9)))) for _ in "ab")
            lines.append(f"g\tf\ty\ti\t{len(first.split()) / 2}\t{first}\t{second}\n")
        (tmp_path / "stsb" / f"sts-{part}.csv").write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.tasks", "--model", str(toy["model"])]
    command += ["--data", str(tmp_path), "--tasks", "stsb", "--seeds", "1"]
    command += ["--output", str(tmp_path / "results.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| jaxllm-float32 / torch-float32 | stsb | pearson |" in done.stdout
    ours, torch = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (ours["variant"], torch["variant"]) == ("jaxllm-float32", "torch-float32")
    assert torch["steps"] == 4
    for row in (ours, torch):
        assert -1 <= row["pearson"] <= 1
        assert row["gate"]["torch"]["grad_norm"] > 0
    assert ours["train_loss"] == pytest.approx(torch["train_loss"], rel=0.3)


@pytest.mark.slow
def test_the_gate_refuses_perturbed_weights(toy, tmp_path):
    from safetensors.numpy import load_file, save_file

    content = labelled(str(toy["train.tsv"]), str(toy["dev.tsv"]), count=64)
    job = Job("start", str(toy["model"]), directory=str(tmp_path), **content.write(tmp_path))
    job = replace(job, model=finetune.worker(finetune.JAXLLM, job, tmp_path)["model"])
    job = replace(job, action="gate")
    ours = finetune.worker(finetune.JAXLLM, job, tmp_path)
    assert 16 <= len(ours["rows"]) == len(set(ours["rows"])) <= 48
    weights = Path(job.model) / "model.safetensors"
    tensors = load_file(weights)
    tensors["bert.encoder.layer.1.attention.self.value.weight"] *= 1.05
    save_file(tensors, weights, metadata={"format": "pt"})
    theirs = finetune.worker(finetune.TORCH, replace(job, rows=ours["rows"]), tmp_path)
    with pytest.raises(BenchmarkError, match="do not compute the same"):
        finetune.compare({"ours": ours, "theirs": theirs}, "ours", "theirs", 1e-4)
