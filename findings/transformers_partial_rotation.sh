#!/usr/bin/env bash
# transformers' Llama, whose config says that a part of each head is rotated.
#
# Guess: partial_rotary_factor 0.5 rotates half of each head, or is refused.
# Found: with rope_type default it is read past, and the logits are those of whole rotation; with rope_type linear the
# same config fails inside the attention, as the tables are then half as wide as the heads.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q transformers==5.24.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__)
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def logits(**rope):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": 1e4, **rope})
    with torch.no_grad():
        return LlamaForCausalLM(config).eval()(torch.tensor([[5, 6, 7, 8]])).logits


whole = logits(rope_type="default")
half = logits(rope_type="default", partial_rotary_factor=0.5)
print("default: largest difference", (whole - half).abs().max().item())
assert torch.equal(whole, half), "changed: the factor counts with rope_type default"
try:
    logits(rope_type="linear", factor=2.0, partial_rotary_factor=0.5)
except RuntimeError as error:
    print("linear:", str(error).splitlines()[0])
else:
    raise SystemExit("changed: the factor counts with rope_type linear")
PY
