"""The frame of the benchmark suite: what runs where, FLOPs, tables. Its runs: tests/parity."""

import itertools
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are not part of the installed package

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import flops, pipeline, suite, suite_report  # noqa: E402
from benchmarks.machine import Load  # noqa: E402
from benchmarks.stepping import Batch, timed  # noqa: E402
from benchmarks.texts import IGNORED, MASK, padded_batches, texts, tokenize  # noqa: E402
from benchmarks.workers import BenchmarkError  # noqa: E402
from benchmarks.workloads import SUITES, VARIANTS, StepJob, Workload, applies  # noqa: E402
from jaxllm.data.tokenizer import load_tokenizer  # noqa: E402
from jaxllm.errors import InputError  # noqa: E402


def row(workload: str, variant: str, speed: float, **more: object) -> dict:
    return {
        "workload": workload,
        "variant": variant,
        "date": "2026-01-02T03:04:05+00:00",
        "shape": vars(SUITES["toy"].workloads["toy-mlm"]),
        "options": vars(VARIANTS[variant]),
        "real_tokens_per_second": speed,
        "lowest": 0.9 * speed,
        "highest": 1.1 * speed,
        "flops_per_token": 5.4e8,
        "mfu": None,
        "other_load": 0.01,
        "timings": [{"seconds": 2.0, "real_tokens": 100, "padded_tokens": 400}],
        "first_step_seconds": 3.0,
        "peak_memory": 512 * 2**20,
        "device": "cpu",
        "gate": {"torch-eager": {"loss": 0.7}, "jaxllm": {"loss": 0.7}},
        "machine": {"cpus": 2, "cpu": "cpu", "python": "3", "versions": {"jax": "1"}, "git": "0"},
        **more,
    }


ROWS = [
    row("a", "jaxllm", 3000),
    row("a", "torch-eager", 1000),
    row("a", "torch-compile", 1500, mfu=0.25),
    row("b", "jaxllm", 10, gate=None, other_load=0.5),
]


PIPELINE = {"config": "configs/a.yaml", "options": [], "date": "2026-01-02T03:04:05+00:00"}
PIPELINE |= {"import_seconds": 1.26, "feed_tokens_per_second": 9000, "step_tokens_per_second": 1500}
PIPELINE |= {"first_step_seconds": 20.0, "first_compile_seconds": 12.0, "first_run_seconds": 30.04}
PIPELINE |= {"second_step_seconds": 5.0, "second_compile_seconds": 1.9, "second_run_seconds": 9.96}
PIPELINE |= {"machine": ROWS[0]["machine"]}


DEVICES = ["cpu", "H200"]


def test_the_table_has_each_row_beside_its_baselines():
    lines = suite_report.markdown(ROWS).splitlines()
    assert "| jaxllm | 3,000 (2,700 to 3,300) | 3.00 | 2.00 | 200 |  | 512 MiB | 3.0 s |" in lines
    assert (
        "| torch-compile | 1,500 (1,350 to 1,650) | 1.50 | 1.00 | 200 | 25.0% | 512 MiB | 3.0 s |"
        in lines
    )
    assert "| jaxllm | 10 (9 to 11) |  |  | 200 |  | 512 MiB | 3.0 s |" in lines
    text = "\n".join(lines)
    assert "Loss and gradient norm were not compared" in text
    assert "other programs took up to 50%" in text
    assert text.count("Medians of 1 timings") == 1


def test_rows_of_fine_tuning_have_tables_of_their_own(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    known = {"model": "tiny", "train_examples": 9, "dev_examples": 3, "metric": "f1", "steps": 30}
    timing = {"timed_steps": 20, "padded_tokens_per_second": 9, "compile_seconds": 1}
    rows = [
        row("x", variant, 100 * factor, seed=seed, task="ner", f1=0.5, **known, **timing)
        for seed in (0, 1)
        for variant, factor in (("jaxllm", 2), ("torch-eager", 1))
    ]
    names = {"jaxllm": "jaxllm-float32", "torch-eager": "torch-float32"}
    rows = [{**r, "variant": names[r["variant"]]} for r in rows]
    for r in rows:
        del r["workload"]
    file.write_text("".join(json.dumps(r) + "\n" for r in [*rows, *ROWS]))
    assert command.main(["report", str(file)]) == 0
    text = capsys.readouterr().out
    assert "| jaxllm-float32 / torch-float32 | ner | f1 | 0.5000 ± 0.0000 |" in text
    assert "| jaxllm | 3,000 (2,700 to 3,300) | 3.00 | 2.00 |" in text


def test_files_of_several_runs_make_one_report_and_plots(tmp_path, capsys):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps(r) + "\n" for r in [ROWS[0], row("a", "torch-eager", 1)]))
    second.write_text("".join(json.dumps(r) + "\n" for r in ROWS[1:]))
    plots = tmp_path / "plots"
    assert command.main(["report", str(first), str(second), "--plots", str(plots)]) == 0
    assert "| jaxllm | 3,000 (2,700 to 3,300) | 3.00 | 2.00 |" in capsys.readouterr().out
    assert sorted(path.name for path in plots.iterdir()) == ["a.png", "b.png"]


def test_rows_of_two_devices_are_not_compared(tmp_path, capsys):
    rows = [*ROWS[:2], row("a", "jaxllm", 9000, device="H200"), row("a", "torch-eager", 4500)]
    rows[-1]["device"] = "H200"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert command.main(["report", str(file)]) == 0
    text = capsys.readouterr().out
    assert "### a, cpu" in text
    assert text.count("Medians of") == 2
    assert "| jaxllm | 3,000 (2,700 to 3,300) | 3.00 |" in text
    assert "### a, H200" in text
    assert "| jaxllm | 9,000 (8,100 to 9,900) | 2.00 |" in text
    longer = {**ROWS[0]["shape"], "length": 64}
    rows += [
        row("b", "jaxllm", 1, shape=longer),
        row("b", "jaxllm", 2, shape=longer, device="H200"),
    ]
    titles = [title for title, *_ in suite_report.scaling(rows)]
    assert titles == [f"mlm-bert-toy-uniform-dropout-0.1-float32-by-length-{d}" for d in DEVICES]


def test_a_pipeline_is_in_the_report(tmp_path, capsys):
    file = tmp_path / "pipeline.jsonl"
    file.write_text(json.dumps(PIPELINE) + "\n")
    assert command.main(["report", str(file)]) == 0
    assert f"{pipeline.table(PIPELINE)}\n\n- configs/a.yaml" in capsys.readouterr().out


def test_lines_are_drawn_over_lengths_and_sizes():
    shape = vars(Workload("encode", "minilm", 8, 512, "normal", dropout=0.0))
    others = [{"length": 128}, {"length": 128, "shape": "bert-base"}, {"texts": "full"}]
    rows = [
        row(str(number), "jaxllm", 100 * number, shape={**shape, **other}, flops_per_token=flops)
        for number, (other, flops) in enumerate(
            zip([{}, *others], (2e6, 1e6, 9e6, 3e6), strict=True)
        )
    ]
    found = {title: lines for title, _, lines in suite_report.scaling(rows)}
    assert found == {
        "encode-minilm-normal-dropout-0-bfloat16-by-length": {"jaxllm": [(512, 0), (128, 100)]},
        "encode-128-normal-dropout-0-bfloat16-by-size": {"jaxllm": [(1.0, 100), (9.0, 200)]},
    }


def test_the_gate_asks_every_way_to_compute_the_model(monkeypatch, tmp_path):
    def call(session, side, job, environment=None):
        assert side == job.variant.side
        loss = {"flax": 2.0, "jaxllm": 1.01 if job.variant.attention == "triton" else 1.0}
        return {"loss": loss.get(side, 1.0), "grad_norm": 3.0}

    monkeypatch.setattr(suite.Session, "call", call)
    modern, bert = (
        suite.Session(name, SUITES["toy"].workloads[name], tmp_path, {})
        for name in ("toy-modernbert", "toy-mlm")
    )
    ours = ["jaxllm-2021", "jaxllm-full-head", "jaxllm-padded", "jaxllm"]
    figures = {"loss": 1.0, "grad_norm": 3.0}
    found = modern.gate([*ours, "flax", "torch-sdpa"])
    names = ["torch-eager", "jaxllm-2021", "jaxllm-full-head", "jaxllm"]
    assert found == dict.fromkeys(names, figures)
    assert list(found) == names
    assert modern.gate(["jaxllm", "jaxllm-padded", "flax"]) is None
    with pytest.raises(BenchmarkError, match="the same loss: flax 2, torch-eager 1,"):
        bert.gate(["jaxllm", "flax", "torch-eager"])
    # Kernels for bfloat16 alone may be a hundredth off, and no more.
    chip = suite.Session("chip", SUITES["gpu"].workloads["mlm-base-128"], tmp_path, {})
    assert list(chip.gate(["jaxllm-triton", "torch-compile"])) == ["torch-eager", "jaxllm-triton"]
    monkeypatch.setattr(suite, "ROUNDED", 5e-3)
    with pytest.raises(BenchmarkError, match="the same loss: jaxllm-triton"):
        chip.gate(["jaxllm-triton", "torch-compile"])


@pytest.mark.parametrize("content", [None, "", "{}\n", "no json\n"])
def test_a_file_that_is_no_output_is_refused(tmp_path, content, capsys):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    assert command.main(["report", str(file)]) == 2
    assert "rows.jsonl" in capsys.readouterr().err


def test_names_of_workloads_and_variants_choose_runs(capsys):
    assert suite.chosen("cpu", None)[1] == list(SUITES["cpu"].variants)
    picked = suite.chosen("toy", ["toy-encode", "jaxllm"])
    assert picked == (["toy-encode"], ["jaxllm"])
    with pytest.raises(InputError, match=r"--only: found jaxllm-cudnn, expected .*toy-mlm"):
        suite.chosen("toy", ["jaxllm-cudnn", "toy-mlm"])
    assert command.main(["run", "--suite", "cpu", "--only", "nothing"]) == 2
    assert "found nothing" in capsys.readouterr().err
    assert command.main(["run", "--suite", "cpu", "--flax-python", "no/such/python"]) == 2
    assert "--flax-python no/such/python: there is no such program" in capsys.readouterr().err


def test_the_first_variants_come_first_and_no_run_begins_late(monkeypatch, tmp_path, capsys):
    toy = replace(SUITES["toy"], at_once=2, first=("jaxllm", "torch-eager"), last_start=60)
    clock = itertools.count(0, 25)  # the start, and one look for each two runs
    began = []

    def measured(part):
        began.extend((session.name, name) for session, name in part)
        return [row(session.name, name, 1.0) for session, name in part]

    monkeypatch.setitem(SUITES, "toy", toy)
    monkeypatch.setattr(suite, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(suite, "interpreters", lambda _: suite.HERE)
    monkeypatch.setattr(suite, "measured", measured)
    monkeypatch.setattr(
        suite, "checked", lambda sessions, *_, **__: ({s.gated: None for s in sessions}, [])
    )
    only = ["toy-mlm", "toy-encode", "jaxllm-padded", "jaxllm", "torch-eager"]
    arguments = {"suite": "toy", "only": only, "output": str(tmp_path / "rows.jsonl")}
    arguments |= dict.fromkeys(["flax_python", "text", "tokenizer", "profile"])
    rows = suite.run(Namespace(**arguments))
    pairs = [(w, v) for w in ("toy-mlm", "toy-encode") for v in ("jaxllm", "torch-eager")]
    assert [(r["workload"], r["variant"]) for r in rows] == began == pairs
    left = "left out, 60 seconds are over: toy-mlm jaxllm-padded, toy-encode jaxllm-padded"
    assert left in capsys.readouterr().err


def test_only_these_suites_keep_to_the_cpu():
    assert {name for name, suite in SUITES.items() if suite.on_cpu} == {"cpu", "toy"}


def test_a_variant_runs_where_it_is_another_than_the_next():
    def names(name: str, workload: str) -> list[str]:
        return [
            v
            for v in SUITES[name].variants
            if applies(VARIANTS[v], SUITES[name].workloads[workload])
        ]

    torch = ["torch-eager", "torch-sdpa", "torch-compile"]
    old = ["jaxllm-2021", "jaxllm-full-head"]
    theirs = ["flax", *torch]
    head, cudnn, triton = "jaxllm-triton-full-head", "jaxllm-cudnn", "jaxllm-triton"
    fused = [cudnn, head, triton]
    assert names("cpu", "mlm-4-layers-128") == ["jaxllm", *theirs]
    assert names("cpu", "mlm-4-layers-128-mixed") == [*old, "jaxllm-padded", "jaxllm", *theirs]
    assert names("cpu", "mlm-4-layers-512-text") == ["jaxllm-padded", "jaxllm", *theirs]
    assert names("cpu", "encode-minilm-512-mixed") == ["jaxllm-padded", "jaxllm", *theirs]
    assert names("cpu", "causal-gpt2-256") == ["jaxllm", *torch]
    assert names("cpu", "causal-gpt2-256-text") == ["jaxllm-padded", "jaxllm", *torch]
    assert names("gpu", "causal-gpt2-1024") == ["jaxllm-triton", "torch-compile"]
    assert names("gpu-all", "mlm-base-512") == ["jaxllm", head, triton, *theirs]
    assert names("gpu-all", "mlm-modernbert-1024") == ["jaxllm", *fused, *torch]
    assert names("gpu-all", "mlm-base-512-no-dropout") == ["jaxllm", *fused, *theirs]
    assert names("gpu", "mlm-base-512") == ["jaxllm-triton", "flax", "torch-compile"]
    packed = ["jaxllm-2021", "jaxllm-triton-padded", "jaxllm-triton", "flax", "torch-compile"]
    assert names("gpu", "mlm-base-512-mixed") == packed
    assert names("tpu", "classify-base-128") == ["jaxllm"]


def test_flops_are_those_of_the_formulas_in_the_literature():
    """BERT-base at 128 and 512 tokens with a head on 15 % of them: 545 and 588 MFLOP a token."""
    for length, expected in ((128, 545e6), (512, 588e6)):
        found = flops.per_real_token(Workload("mlm", "bert-base", 1, length))
        assert found == pytest.approx(expected, rel=2e-3)
    # GPT-2 of 124 million parameters, each but the positions' and biases' in a product.
    causal = flops.per_real_token(Workload("causal", "gpt2", 1, 1024))
    assert causal == pytest.approx(6 * (12 * 12 * 768**2 + 50257 * 768) + 12 * 12 * 768 * 1024)
    body = flops.per_real_token(Workload("encode", "bert-base", 1, 128))
    assert body == pytest.approx((509.6e6 + 14.2e6) / 3, rel=2e-3)
    # Of ModernBERT's four layers the first and the last see all tokens, the others a window of 128.
    modern = Workload("encode", "modernbert-base-4-layers", 1, 1024)
    products, scores = 4 * (8 * 768**2 + 6 * 768 * 1152), 4 * 768 * (2 * 1024 + 2 * 128)
    assert flops.per_real_token(modern) == pytest.approx(products + scores)


def test_texts_are_the_same_for_every_side_and_as_long_as_they_should_be():
    workload = Workload("mlm", "bert-base", 1, 512, "normal")
    first, again = texts(workload, 1000, 400), texts(workload, 1000, 400)
    lengths = np.array([len(text.ids) for text in first])
    assert abs(lengths.mean() - 256) < 12
    assert abs(lengths.std() - 64) < 8
    for text, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(text.ids, other.ids)
        assert (text.ids[text.masked] == MASK).all()
        assert abs(len(text.masked) - 0.15 * len(text.ids)) <= 1
        assert (text.originals >= 5).all()


# In a process of its own, for it hides PyTorch.
TEXTS_OF_ROWS = """
import numpy as np
from benchmarks import step_jaxllm
from benchmarks.texts import texts
from benchmarks.workloads import SUITES, VARIANTS, StepJob

workload = SUITES["toy"].workloads["toy-mlm"]
job = StepJob("run", workload, VARIANTS["jaxllm"], "")
for batch in step_jaxllm.batches(job, texts(workload, 99, 800), 80):
    print(np.asarray(batch.arrays["segment_ids"]).max(1).mean())
"""


def test_long_texts_are_not_packed_into_the_first_batches_alone():
    command = [sys.executable, "-c", TEXTS_OF_ROWS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    counts = np.array(done.stdout.split(), float)
    assert len(counts) == 80
    assert abs(counts[:20].mean() - counts[20:].mean()) < 0.3


def test_batches_are_padded_to_their_longest_text_or_to_the_longest_of_all():
    workload = Workload("mlm", "bert-base", 3, 512, "normal")
    found = texts(workload, 1000, 6)
    sizes = [len(text.ids) for text in found]
    whole, short = (
        padded_batches(workload, 1000, 2, 3, one_shape=one_shape) for one_shape in (True, False)
    )
    for number, (batch, cut) in enumerate(zip(whole, short, strict=True)):
        own = found[3 * number : 3 * number + 3]
        longest = max(sizes[3 * number : 3 * number + 3])
        row = batch.arrays["input_ids"].shape[1]
        assert row % 64 == 0
        assert max(sizes) <= row < max(sizes) + 64
        assert longest <= cut.arrays["input_ids"].shape[1] < longest + 8
        for made in (batch, cut):
            assert made.padded_tokens == made.arrays["input_ids"].size
            assert made.real_tokens == made.arrays["attention_mask"].sum()
            assert made.real_tokens == sum(len(text.ids) for text in own)
            for text, ids, labels in zip(
                own, made.arrays["input_ids"], made.arrays["labels"], strict=True
            ):
                np.testing.assert_array_equal(ids[: len(text.ids)], text.ids)
                np.testing.assert_array_equal(np.flatnonzero(labels >= 0), text.masked)
                np.testing.assert_array_equal(labels[text.masked], text.originals)
    assert padded_batches(replace(workload, length=8), 1000, 1, 3)[0].padded_tokens <= 3 * 8
    full = Workload("classify", "bert-base", 3, 64)
    assert padded_batches(full, 1000, 1, 3)[0].arrays.keys() == {"input_ids", "labels"}


def test_a_causal_lm_has_its_own_tokens_as_labels_but_for_padding():
    workload = Workload("causal", "gpt2-toy", 3, 32, "uniform")
    (batch,) = padded_batches(workload, 99, 1, 3)
    for row, text in enumerate(texts(workload, 99, 3)):
        ids, labels = (batch.arrays[name][row] for name in ("input_ids", "labels"))
        assert (text.ids != MASK).all()
        np.testing.assert_array_equal(ids[: len(text.ids)], text.ids)
        np.testing.assert_array_equal(labels[: len(text.ids)], text.ids)
        assert (labels[len(text.ids) :] == IGNORED).all()


def test_texts_of_a_file_are_its_lines(tiny_tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    file, lines = tmp_path / "text.txt", tmp_path / "lines.json"
    file.write_text("the good film\n\n a bad book \n" + "very " * 30 + "\n", encoding="utf-8")
    tokenize(str(file), str(tiny_tokenizer_dir), lines)
    workload = Workload("classify", "bert-base", 1, 16, "file", lines=str(lines))
    found = texts(workload, 1000, 4)
    assert sorted(len(text.ids) for text in found[:3]) == [5, 5, 16]
    np.testing.assert_array_equal(found[3].ids, found[0].ids)
    wanted = [tokenizer(text)["input_ids"] for text in ("the good film", "a bad book")]
    assert [text.ids.tolist() for text in found[:3] if len(text.ids) == 5] in (wanted, wanted[::-1])


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("\n \n", "no text")])
def test_a_text_that_is_none_is_refused(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        tokenize(str(file), "unused", tmp_path / "lines.json")


def test_the_table_of_a_pipeline():
    last = pipeline.table(PIPELINE).splitlines()[-1]
    assert last == "| 1.3 s | 20.0 s, 12.0, 30.0 | 5.0 s, 1.9, 10.0 | 9,000 | 1,500 | 6.0 |"


def test_a_tick_in_a_moment_is_no_more_than_the_whole_machine():
    before, after = Load(0.0, 1.0, 0.0), Load(1e-5, 1.01, 0.0)
    assert after.others(before, ours=0.0) == 1


def test_timings_are_of_the_same_steps():
    calls = []

    class Counted:
        batches = (Batch("a", 3, 16), Batch("b", 5, 16), Batch("c", 9, 16))

        def compile(self):
            calls.append("compiled")

        def step(self, batch):
            calls.append(batch.arrays)

        def finish(self):
            pass

    workload = Workload("mlm", "bert-toy", 2, 8, steps=2, warmup=1, repeats=3)
    job = StepJob("run", workload, VARIANTS["jaxllm"], "model")
    figures = timed(job, lambda _: Counted(), lambda: calls.append("turn"))
    assert calls == ["compiled", "turn", "a", "b", *"ab" * 3]
    assert [t["real_tokens"] for t in figures["timings"]] == [8, 8, 8]
    assert [t["padded_tokens"] for t in figures["timings"]] == [32, 32, 32]
    assert 0 <= figures["other_load"] <= 1
