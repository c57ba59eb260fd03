"""The fine-tuning recipe that all sides of a comparison share, and the job handed to a worker."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning with AdamW and linear decay to zero."""

    epochs: int = 1
    batch_size: int = 32  # examples per optimizer step; packed rows hold this many on average
    learning_rate: float = 5e-5
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.01  # not on biases and norms
    clip_norm: float = 1.0
    max_length: int = 64  # tokens, special tokens included; longer rows are cut
    eval_batch_size: int = 64
    burn_in: int = 10  # first optimizer steps, which the timing leaves out


@dataclass(frozen=True)
class Job:
    """What a worker process does: one gate step, or one run of training and evaluation."""

    action: str  # "start" (write the start directory), "gate" or "run"
    model: str  # directory of a model; for "start" whatever jaxllm's model.path takes
    train: str  # see `benchmarks.examples`
    dev: str
    labels: list[str]  # none: the labels are numbers to be predicted
    directory: str  # empty, for whatever the worker writes
    task: str = "sequence-classification"  # jaxllm's `model.task`
    dtype: Dtype = "float32"
    fused: bool = False
    packed: bool = True
    seed: int = 0
    metric: str = "accuracy"  # the figure that says how good the outcome is
    rows: list[int] = field(default_factory=list)  # gate: 0-based examples of `train` in the batch
    recipe: Recipe = field(default_factory=Recipe)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "recipe": Recipe(**values["recipe"])})


@dataclass
class Timer:
    """Sums over the steps after the burn-in; the clock is read at the two ends only."""

    started: float = 0.0
    stopped: float = 0.0
    steps: int = 0
    examples: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0

    def add(self, *, examples: int, real_tokens: int, padded_tokens: int) -> None:
        self.steps += 1
        self.examples += examples
        self.real_tokens += real_tokens
        self.padded_tokens += padded_tokens

    def figures(self) -> dict[str, float]:
        """Tokens are those of the timed steps; padded tokens are all positions computed."""
        seconds = self.stopped - self.started
        return {
            "timed_steps": self.steps,
            "timed_seconds": seconds,
            "timed_examples": self.examples,
            "timed_real_tokens": self.real_tokens,
            "timed_padded_tokens": self.padded_tokens,
            "real_tokens_per_second": self.real_tokens / seconds,
            "padded_tokens_per_second": self.padded_tokens / seconds,
        }


def burn_in_steps(recipe: Recipe, steps: int) -> int:
    """The recipe's burn-in, but never more than half of all steps."""
    return min(recipe.burn_in, steps // 2)


def warmup_steps(recipe: Recipe, steps: int) -> int:
    return math.ceil(recipe.warmup * steps)


def read_examples(path: str) -> tuple[list[Any], list[str] | None, list[Any]]:
    """Texts (or lists of words), second texts (or None) and labels of a file of JSON lines."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = [row["pair"] for row in rows] if "pair" in rows[0] else None
    return [row["text"] for row in rows], pairs, [row["label"] for row in rows]


def serve(actions: dict[str, Callable[[Job], dict[str, Any]]]) -> None:
    """The main of a worker: ``python -m benchmarks.<worker> JOB RESULT``, both JSON files."""
    job, result = Job.read(Path(sys.argv[1])), Path(sys.argv[2])
    result.write_text(json.dumps(actions[job.action](job)), encoding="utf-8")
