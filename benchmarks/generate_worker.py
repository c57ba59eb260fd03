"""One side of `benchmarks.generate`: ``python -m benchmarks.generate_worker VARIANT MODEL``.

Reads jobs from standard input, a JSON object a line ({"prompts": [[id, …], …], "new_tokens": n,
"beams": k}), and answers each with a line of JSON: seconds, sequences, programs compiled on the
way, peak memory so far.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Generate = Callable[[np.ndarray, int, int], np.ndarray]
TORCH = {"torch-eager": {}, "torch-static": {"cache_implementation": "static"}}
TORCH["torch-compile"] = TORCH["torch-static"]


def ours(model: str) -> tuple[Generate, Callable[[], int]]:
    """(generates, programs compiled so far)."""
    import jax

    import jaxllm
    from benchmarks import no_torch  # noqa: F401

    compiled = [0]

    def count(event: str, _: float, **__: Any) -> None:
        compiled[0] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    writer = jaxllm.AutoModelForCausalLM.from_pretrained(model)

    def generate(ids_BP: np.ndarray, new_tokens: int, beams: int) -> np.ndarray:
        out = writer.generate(
            ids_BP, np.ones_like(ids_BP), max_new_tokens=new_tokens, num_beams=beams
        )
        assert isinstance(out, np.ndarray)
        return out

    return generate, lambda: compiled[0]


def theirs(model: str, variant: str) -> tuple[Generate, Callable[[], int]]:
    import torch
    import transformers

    torch.set_grad_enabled(False)
    writer = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    if variant == "torch-compile":
        writer.forward = torch.compile(writer.forward)

    def generate(ids_BP: np.ndarray, new_tokens: int, beams: int) -> np.ndarray:
        ids = torch.from_numpy(ids_BP).long()
        out = writer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            num_beams=beams,
            do_sample=False,
            **TORCH[variant],
        )
        return out.numpy()

    return generate, lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


def main() -> None:
    variant, model = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    generate, compiled = ours(model) if variant == "jaxllm" else theirs(model, variant)
    from jaxllm.metrics.throughput import peak_host_memory_bytes

    for line in sys.stdin:
        job = json.loads(line)
        before, start = compiled(), time.perf_counter()
        ids = generate(np.array(job["prompts"], np.int32), job["new_tokens"], job["beams"])
        answer = {
            "seconds": time.perf_counter() - start,
            "sequences": ids.tolist(),
            "compiled": compiled() - before,
            "peak_memory": peak_host_memory_bytes(),
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
