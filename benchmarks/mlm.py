"""The masked-LM step, jaxllm beside PyTorch: BERT-base's layers, four of them, random weights.

Steps of AdamW on rows of 8 x 128 tokens with 15 % masked: random token ids in texts of 16 to 128
tokens, which PyTorch and jaxllm-float32 pad to 128, one a row, and jaxllm-float32-packed packs.
PyTorch computes logits of every position, as transformers' class does, jaxllm those of the masked
ones. Gate, turns and output are those of ``benchmarks.finetune``.
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.finetune import Variant, add_session_options, run, runs, warn_of_load
from benchmarks.recipe import Job, Recipe
from benchmarks.report import Row, table

JAXLLM, TORCH = "benchmarks.mlm_jaxllm", "benchmarks.mlm_torch"
VARIANTS = {
    "jaxllm-float32": Variant(JAXLLM, "float32", packed=False),
    "jaxllm-float32-packed": Variant(JAXLLM, "float32"),
    "torch-float32": Variant(TORCH, "float32"),
}
MASKED = 0.15


@dataclass(frozen=True)
class Size:
    """A workload; `texts` are gone through `epochs` times."""

    config: dict[str, int]
    texts: int
    epochs: int
    length: int


SIZES = {
    "base": Size({"vocab_size": 30522, "num_hidden_layers": 4}, texts=192, epochs=2, length=128),
    "toy": Size(
        {
            "vocab_size": 99,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        texts=32,
        epochs=2,
        length=32,
    ),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mlm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=list(SIZES), default="base", help="(default: base)")
    add_session_options(parser, list(VARIANTS))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: see `finetune.run`."""
    return run("benchmarks.mlm", parser().parse_args(argv), benchmark, table)


def benchmark(arguments: argparse.Namespace) -> list[Row]:
    """All runs of one session."""
    size = SIZES[arguments.size]
    warn_of_load()
    with tempfile.TemporaryDirectory(prefix="jaxllm-mlm-") as name:
        work = Path(name)
        write_texts(work / "texts.jsonl", size)
        (work / "config.json").write_text(json.dumps(size.config), encoding="utf-8")
        job = Job(
            action="start",
            model=str(work / "config.json"),
            train=str(work / "texts.jsonl"),
            dev="",
            labels=[],
            directory=str(work),
            metric="train_loss",
            recipe=Recipe(epochs=size.epochs, batch_size=8, max_length=size.length, burn_in=5),
        )
        facts = {"train_examples": size.texts, "dev_examples": 0}
        return runs(job, VARIANTS, (JAXLLM, TORCH), arguments, work, facts)


def write_texts(path: Path, size: Size) -> None:
    """JSON lines with the `ids` of a text, its masked `positions`, and the `labels` at these."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(size.texts):
            count = draw.randint(size.length // 8, size.length)
            ids = [draw.randrange(5, size.config["vocab_size"]) for _ in range(count)]
            positions = sorted(draw.sample(range(count), max(1, round(MASKED * count))))
            labels = [ids[i] for i in positions]
            for i in positions:
                ids[i] = 4
            file.write(json.dumps({"ids": ids, "positions": positions, "labels": labels}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
