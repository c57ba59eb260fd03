"""FLOPs of a workload, counted as the model's mathematics needs them, whoever computes it how."""

from benchmarks.texts import texts
from benchmarks.workloads import MASKED, SHAPES, Workload
from jaxllm.throughput import effective_length, encoder_flops_per_token

# What BERT-base is, where a shape does not say otherwise; and ModernBERT-base.
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}
MODERN = {"num_hidden_layers": 22, "hidden_size": 768, "intermediate_size": 1152}
MODERN_VOCABULARY, MODERN_WINDOW, MODERN_EVERY = 50368, 128, 3


def per_real_token(workload: Workload) -> float:
    """FLOPs for one token that is not padding: `encoder_flops_per_token`, a third of it forward.

    A token attends to the tokens of its own text; a masked LM's head sees 15 % of the tokens, a
    classifier's one of each text.
    """
    shape = SHAPES[workload.shape]
    modern = shape["model_type"] == "modernbert"
    size = {**(MODERN if modern else BASE), **shape}
    lengths = [len(text.ids) for text in texts(workload, 1000, 512)]
    attended = effective_length(lengths)
    layers = size["num_hidden_layers"]
    if modern:  # the first layer of three sees all, two see a window
        near, everywhere = min(attended, MODERN_WINDOW), -(-layers // MODERN_EVERY)
        attended = (everywhere * attended + (layers - everywhere) * near) / layers
    vocabulary = size.get("vocab_size", MODERN_VOCABULARY)
    outputs, fraction = {
        "mlm": (vocabulary, MASKED),
        "classify": (2, len(lengths) / sum(lengths)),
        "encode": (0, 0.0),
    }[workload.kind]
    flops = encoder_flops_per_token(
        layers=layers,
        width=size["hidden_size"],
        # up and down, and GeGLU's gate: half a pair more
        mlp_width=size["intermediate_size"] * 3 // 2 if modern else size["intermediate_size"],
        attended=attended,
        outputs=outputs,
        head_fraction=fraction,
    )
    return flops / 3 if workload.kind == "encode" else flops
