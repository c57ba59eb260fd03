"""What the suite measures: workloads, the variants that take turns on each, and the suites.

A workload is one shape of batch through one model: a training step, or the encoder alone. Variants
are jaxllm, jaxllm with something taken away, PyTorch's ways of running the same model, and Flax's.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
MINI = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
TOY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
# transformers' configs; what they do not say is the model type's default, which is the base size.
SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": {"model_type": "bert", "vocab_size": 30522},
    "bert-large": {"model_type": "bert", "vocab_size": 30522, **LARGE},
    "bert-base-4-layers": {"model_type": "bert", "vocab_size": 30522, "num_hidden_layers": 4},
    "minilm": {"model_type": "bert", "vocab_size": 30522, **MINI},
    "modernbert-base": {"model_type": "modernbert"},
    "modernbert-base-4-layers": {"model_type": "modernbert", "num_hidden_layers": 4},
    "gpt2": {"model_type": "gpt2"},
    "bert-toy": {"model_type": "bert", **TOY},
    "modernbert-toy": {"model_type": "modernbert", "pad_token_id": 0, **TOY},
    "gpt2-toy": {"model_type": "gpt2", "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4},
}
DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "modernbert": ("embedding_dropout", "mlp_dropout", "attention_dropout"),
    "gpt2": ("embd_pdrop", "resid_pdrop", "attn_pdrop"),
}
MASKED = 0.15  # share of the tokens that a masked language model is asked for


@dataclass(frozen=True)
class Workload:
    """Attributes:
    kind: a masked-LM step, a causal-LM step, which asks for each token of a text but its
            first, a step of sequence classification, or the encoder without a head.
    shape: a key of SHAPES.
    batch, length: rows and tokens of a row; a packed batch is as large.
    texts: all as long as a row; N(length / 2, length / 8); uniform from length / 8 to length; or
        the lines of a file.
    lines: that file, in tokens.
    steps: in each of `repeats` timings.
    """

    kind: Literal["mlm", "causal", "classify", "encode"]
    shape: str
    batch: int
    length: int
    texts: Literal["full", "normal", "uniform", "file"] = "full"
    dropout: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    steps: int = 20
    warmup: int = 5
    repeats: int = 3
    lines: str | None = None

    def config(self) -> dict[str, Any]:
        """Of the model, as transformers names it; longer rows than the default's have positions."""
        shape = SHAPES[self.shape]
        rates = dict.fromkeys(DROPOUTS[shape["model_type"]], self.dropout)
        return {**shape, **rates}


@dataclass(frozen=True)
class Variant:
    """One way to run a workload.

    Attributes:
        side: whose code; flax is that of the classes that transformers 4 had.
        packed: jaxllm: several texts in a row.
        masked_head: jaxllm: logits of the masked tokens only.
        attention: jaxllm's `model.attention`, or transformers' `attn_implementation`.
        unroll: jaxllm's `model.unroll`.
        pmap: jaxllm: the step as it was written in 2021: `jax.pmap`, and optax's own clipping.
        compiled: torch.compile.
    """

    side: Literal["jaxllm", "torch", "flax"]
    packed: bool = True
    masked_head: bool = True
    attention: str = "xla"
    unroll: int = 0
    pmap: bool = False
    compiled: bool = False

    @property
    def fused(self) -> bool:
        """Of jaxllm, with kernels for some device that take bfloat16 alone."""
        return self.side == "jaxllm" and self.attention not in ("xla", "auto")

    @property
    def computation(self) -> tuple:
        """What a gate can tell apart: how often blocks are unrolled, or texts packed, it cannot."""
        return self.attention, self.pmap, self.masked_head


# Each of jaxllm's first four has more than the one above it: how jaxllm compiles a step and
# attends, logits of the masked tokens only, packing.
VARIANTS = {
    "jaxllm-2021": Variant("jaxllm", packed=False, masked_head=False, unroll=1, pmap=True),
    "jaxllm-full-head": Variant("jaxllm", packed=False, masked_head=False, attention="auto"),
    "jaxllm-padded": Variant("jaxllm", packed=False, attention="auto"),
    "jaxllm": Variant("jaxllm", attention="auto"),
    "jaxllm-cudnn": Variant("jaxllm", attention="cudnn"),
    "jaxllm-triton-full-head": Variant(
        "jaxllm", packed=False, masked_head=False, attention="triton"
    ),
    "jaxllm-triton-padded": Variant("jaxllm", packed=False, attention="triton"),
    "jaxllm-triton": Variant("jaxllm", attention="triton"),
    "jaxllm-splash": Variant("jaxllm", attention="splash"),
    "flax": Variant("flax"),
    "torch-eager": Variant("torch", attention="eager"),
    "torch-sdpa": Variant("torch", attention="sdpa"),
    "torch-compile": Variant("torch", attention="sdpa", compiled=True),
}


def applies(variant: Variant, workload: Workload) -> bool:
    """Whether a variant can run a workload, and is another there than the variants below it.

    The steps that led to jaxllm's are shown where lengths of texts are drawn, once for each model;
    one with the kernels, but PyTorch's head, wherever there is a masked LM.
    """
    if variant.side == "torch":
        return True
    if variant.side == "flax":  # there was no ModernBERT
        return SHAPES[workload.shape]["model_type"] == "bert"
    if variant.fused:
        drops = workload.dropout > 0 and workload.kind != "encode"
        if workload.dtype != "bfloat16" or (drops and variant.attention != "triton"):
            return False
    if not variant.masked_head:
        drawn = workload.texts in ("normal", "uniform")
        return workload.kind == "mlm" and (drawn or variant.fused)
    return variant.packed or workload.texts != "full"


@dataclass(frozen=True)
class Suite:
    """Attributes:
    at_once: runs that compile at the same time; they are timed one by one.
    on_cpu: even where there is an accelerator.
    first: variants that run on every workload before the others do.
    last_start: seconds after which no run begins; None = all run, however long that takes.
    """

    workloads: dict[str, Workload]
    variants: tuple[str, ...]
    at_once: int = 1
    on_cpu: bool = False
    first: tuple[str, ...] = ()
    last_start: float | None = None


def _on_chip() -> dict[str, Workload]:
    base = Workload("mlm", "bert-base", 512, 128)
    long = replace(base, batch=128, length=512)
    large = replace(long, shape="bert-large", batch=96)
    return {
        "mlm-base-128": base,
        "mlm-base-128-no-dropout": replace(base, dropout=0.0),
        "mlm-base-512": long,
        "mlm-base-512-no-dropout": replace(long, dropout=0.0),
        "mlm-base-512-mixed": replace(long, dropout=0.0, texts="normal"),
        "mlm-base-512-text": replace(long, texts="file"),
        "mlm-large-128": replace(large, batch=256, length=128),
        "mlm-large-128-no-dropout": replace(large, batch=256, length=128, dropout=0.0),
        "mlm-large-512": large,
        "mlm-large-512-no-dropout": replace(large, dropout=0.0),
        "mlm-modernbert-1024": Workload("mlm", "modernbert-base", 48, 1024, dropout=0.0),
        "causal-gpt2-1024": Workload("causal", "gpt2", 32, 1024, dropout=0.0),
        "causal-gpt2-1024-text": Workload("causal", "gpt2", 32, 1024, "file", dropout=0.0),
        "classify-base-128": Workload("classify", "bert-base", 32, 128),
        "classify-base-384": Workload("classify", "bert-base", 32, 384),
        "encode-base-512": Workload("encode", "bert-base", 128, 512, dropout=0.0),
        "encode-base-512-mixed": Workload("encode", "bert-base", 128, 512, "normal", dropout=0.0),
    }


def _headlines() -> dict[str, Workload]:
    """The workloads that say most, for a GPU that is there for some minutes only."""
    names = ["mlm-base-128", "mlm-base-512", "mlm-base-512-no-dropout", "mlm-base-512-mixed"]
    names += ["mlm-large-512-no-dropout", "mlm-modernbert-1024", "causal-gpt2-1024"]
    return {name: workload for name, workload in _on_chip().items() if name in names}


def _on_cpu() -> dict[str, Workload]:
    def small(*args: Any, **kwargs: Any) -> Workload:
        timing = {"dtype": "float32", "steps": 3, "warmup": 1, **kwargs}
        return Workload(*args, **timing)

    layers = "bert-base-4-layers"
    return {
        "mlm-4-layers-128": small("mlm", layers, 8, 128),
        "mlm-4-layers-128-no-dropout": small("mlm", layers, 8, 128, dropout=0.0),
        "mlm-4-layers-128-mixed": small("mlm", layers, 8, 128, "uniform"),
        "mlm-4-layers-128-text": small("mlm", layers, 8, 128, "file"),
        "mlm-4-layers-512-text": small("mlm", layers, 8, 512, "file", steps=2),
        "mlm-modernbert-4-layers-1024": small(
            "mlm", "modernbert-base-4-layers", 2, 1024, dropout=0.0, steps=2
        ),
        "causal-gpt2-256": small("causal", "gpt2", 8, 256),
        "causal-gpt2-256-text": small("causal", "gpt2", 8, 256, "file"),
        "classify-minilm-128-mixed": small("classify", "minilm", 32, 128, "uniform"),
        "classify-minilm-384-mixed": small("classify", "minilm", 8, 384, "uniform"),
        "encode-minilm-128-mixed": small("encode", "minilm", 32, 128, "normal", dropout=0.0),
        "encode-minilm-512-mixed": small("encode", "minilm", 8, 512, "normal", dropout=0.0),
        "encode-base-128-mixed": small("encode", "bert-base", 8, 128, "normal", dropout=0.0),
    }


def _toys() -> dict[str, Workload]:
    timing: dict[str, Any] = {"dtype": "float32", "steps": 2, "warmup": 1, "repeats": 3}
    return {
        "toy-mlm": Workload("mlm", "bert-toy", 4, 32, "uniform", **timing),
        "toy-modernbert": Workload("mlm", "modernbert-toy", 4, 32, "uniform", **timing),
        "toy-causal": Workload("causal", "gpt2-toy", 4, 32, "uniform", **timing),
        "toy-classify": Workload("classify", "bert-toy", 4, 32, "uniform", **timing),
        "toy-encode": Workload("encode", "bert-toy", 4, 32, "uniform", dropout=0.0, **timing),
    }


_OURS = ("jaxllm-2021", "jaxllm-full-head", "jaxllm-padded", "jaxllm")
_FUSED = ("jaxllm-cudnn", "jaxllm-triton-full-head", "jaxllm-triton-padded", "jaxllm-triton")
_THEIRS = ("flax", "torch-eager", "torch-sdpa", "torch-compile")
SUITES = {
    "cpu": Suite(_on_cpu(), (*_OURS, *_THEIRS), on_cpu=True),
    "gpu": Suite(
        _headlines(),
        ("jaxllm-2021", "jaxllm-triton-padded", "jaxllm-triton", "flax", "torch-compile"),
        at_once=4,
        first=("jaxllm-triton", "torch-compile"),
        last_start=360,  # so that all is over after eight minutes
    ),
    "gpu-all": Suite(_on_chip(), (*_OURS, *_FUSED, *_THEIRS), at_once=4),
    "tpu": Suite(_on_chip(), (*_OURS, "jaxllm-splash")),  # no PyTorch there
    "toy": Suite(_toys(), (*_OURS, *_THEIRS), at_once=2, on_cpu=True),
}


@dataclass(frozen=True)
class StepJob:
    """What a worker process does.

    Attributes:
        action: write the model that all start from; one step in float32 without dropout, whose loss
            and gradient norm are compared; or the timings.
        model: directory of the weights; for "start", where they are to be.
        profile: directory for a trace of some steps; None = no trace.
    """

    action: Literal["start", "gate", "run"]
    workload: Workload
    variant: Variant
    model: str
    profile: str | None = None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        values = json.loads(path.read_text(encoding="utf-8"))
        parts = {"workload": Workload(**values.pop("workload"))}
        return cls(variant=Variant(**values.pop("variant")), **parts, **values)
