"""The PyTorch side of the suite: transformers' model, one text a row, padded where it is shorter.

AdamW is PyTorch's fused one, bfloat16 autocast; where no row has padding, no mask is given, since
a mask takes the fast attention away. A batch is as long as its longest text, as transformers'
collators make them; those of a compiled model, which has one shape, as the longest of all. On
NVIDIA cuDNN's attention is preferred.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from benchmarks.stepping import Batch, Steps, serve
from benchmarks.texts import BATCHES, GATE_ROWS, digest, padded_batches
from benchmarks.workloads import StepJob, Workload
from jaxllm.metrics.throughput import peak_flops, peak_host_memory_bytes

CLASSES = {
    "mlm": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "classify": AutoModelForSequenceClassification,
    "encode": AutoModel,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
BACKENDS += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def gate(job: StepJob) -> dict[str, Any]:
    """As the other side's, of the same texts."""
    model = load(job).eval()
    # Packed on the other side: all the texts that its rows hold.
    (batch,) = batches(job, model, 1, GATE_ROWS)
    if job.workload.kind == "encode":
        with torch.no_grad():
            x_BTD = model(**batch.arrays).last_hidden_state
        mask = batch.arrays.get("attention_mask")
        real = x_BTD if mask is None else x_BTD[mask > 0]
        return {"outputs": digest(real.reshape(-1, real.shape[-1]).cpu().numpy())}
    loss = model(**batch.arrays).loss
    loss.backward()
    return {"loss": loss.item(), "grad_norm": gradient_norm(model)}


def gradient_norm(model: torch.nn.Module) -> float:
    """In float64: on the CPU PyTorch's float32 norm of BERT's word table is off by up to 3e-3."""
    grads = [p.grad.double() for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads).item()


def prepare(job: StepJob) -> Steps:
    """The batches on the device, and what computes one."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    workload = job.workload
    model = load(job)
    data = batches(job, model, BATCHES, workload.batch)
    call = torch.compile(model) if job.variant.compiled else model
    if workload.kind == "encode":
        model.eval()

        def encode(batch: Batch) -> None:
            with torch.inference_mode(), computing(workload):
                call(**batch.arrays)

        return TorchSteps(job, data, encode)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step(batch: Batch) -> None:
        with computing(workload):
            loss = call(**batch.arrays).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return TorchSteps(job, data, step)


class TorchSteps:
    """Steps on the device of this process; compiled ones are compiled by their first."""

    def __init__(self, job: StepJob, batches: list[Batch], step: Callable[[Batch], None]):
        self.batches, self.step, self._compiled = batches, step, job.variant.compiled

    def compile(self) -> None:
        if self._compiled:
            self.step(self.batches[0])
            self.finish()
            if DEVICE == "cuda":
                torch.cuda.empty_cache()

    def finish(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def traced(self, directory: str) -> Iterator[None]:
        with torch.profiler.profile() as profile:
            yield
        profile.export_chrome_trace(f"{directory}/trace.json")
        table = profile.key_averages().table(f"self_{DEVICE}_time_total", row_limit=25)
        Path(directory, "operations.txt").write_text(table, encoding="utf-8")


@contextlib.contextmanager
def computing(workload: Workload) -> Iterator[None]:
    bfloat16 = workload.dtype == "bfloat16"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bfloat16))
        if DEVICE == "cuda":
            stack.enter_context(sdpa_kernel(BACKENDS, set_priority=True))
        yield


def load(job: StepJob) -> Any:
    values = job.workload.config()
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    attention = job.variant.attention
    model = CLASSES[job.workload.kind].from_pretrained(
        job.model, config=config, dtype=torch.float32, attn_implementation=attention
    )
    return model.to(DEVICE)


def batches(job: StepJob, model: Any, count: int, height: int) -> list[Batch]:
    """`count` batches, a row for each text, on the device."""
    one_shape = job.variant.compiled
    vocabulary = model.config.vocab_size
    made = padded_batches(job.workload, vocabulary, count, height, one_shape=one_shape)
    return [
        replace(batch, arrays={k: torch.from_numpy(x).to(DEVICE) for k, x in batch.arrays.items()})
        for batch in made
    ]


def facts() -> dict[str, Any]:
    """Memory and device, after the timings."""
    if DEVICE == "cuda":
        name = torch.cuda.get_device_name()
        memory = torch.cuda.max_memory_allocated()
        return {"peak_memory": memory, "device": name, "peak_flops": peak_flops(name)}
    return {"peak_memory": peak_host_memory_bytes(), "device": "cpu", "peak_flops": None}


if __name__ == "__main__":
    serve(gate=gate, prepare=prepare, facts=facts)
