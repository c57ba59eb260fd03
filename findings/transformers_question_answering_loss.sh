#!/usr/bin/env bash
# transformers, whose question answering loss depends on how far a row is padded.
#
# Guess: attention_mask hides padding, so a padded row has the loss of the row without padding.
# Found: the mask hides padding from attention alone. The softmax over start and end positions goes over padding
# as well, so the loss of one row grows with the longest row of its batch; start_logits of the text are equal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q transformers==5.24.0 torch==2.13.0
venv/bin/python - <<'PY'
import torch
import transformers
from torch.nn.functional import pad

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
model = transformers.BertForQuestionAnswering(config).eval()
row = torch.tensor([[2, 5, 6, 3, 7, 8, 9, 3]])
answer = {"start_positions": torch.tensor([4]), "end_positions": torch.tensor([5])}
outs = {}
for padding in (0, 8, 56):
    mask = pad(torch.ones_like(row), (0, padding))
    outs[padding] = model(input_ids=pad(row, (0, padding)), attention_mask=mask, **answer)
    print(f"{padding} tokens of padding, all masked: loss {outs[padding].loss.item():.2f}")
for out in outs.values():
    torch.testing.assert_close(out.start_logits[:, :8], outs[0].start_logits)
losses = [out.loss.item() for out in outs.values()]
assert losses[0] + 0.3 < losses[1] and losses[1] + 0.3 < losses[2], "changed: the loss"
PY
