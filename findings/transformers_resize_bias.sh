#!/usr/bin/env bash
# transformers, whose resize_token_embeddings draws new rows near the mean of the old, but not the decoder's bias.
#
# Guess: with mean_resizing (the default) a new token starts as an average token in all that a masked LM has of it.
# Found: its word row lies near the mean of the old rows; its bias in the decoder that is tied to them is 0, whatever
# the mean of the old biases is. So where that mean is far from 0, new tokens start far from average in the logits.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q transformers==5.24.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
import transformers

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
model = transformers.BertForMaskedLM(config)
with torch.no_grad():
    model.get_input_embeddings().weight.add_(3.0)
    model.cls.predictions.bias.fill_(-5.0)
model.resize_token_embeddings(53, mean_resizing=True)
rows = model.get_input_embeddings().weight[50:].mean().item()
bias = model.cls.predictions.bias[50:].tolist()
print(f"new rows: mean {rows:.2f}, of the old {3.0}; new biases {bias}, the old are -5.0")
assert abs(rows - 3) < 0.1, "changed: new rows do not lie near the mean"
assert bias == [0.0, 0.0, 0.0], "changed: new biases are not 0"
PY
