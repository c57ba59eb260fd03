#!/usr/bin/env bash
# transformers, whose question answering loss takes a negative position for an answer at the first token.
#
# Guess: as for other heads, a label of -100 (or -1) is no label, and its row has no part in the loss.
# Found: positions are clamped to 0 ... the row's length. So -1 and -100 train the model to answer with the first
# token, [CLS]; what is ignored is a position of the row's length or beyond it.
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
model = transformers.BertForQuestionAnswering(config).eval()
rows = torch.tensor([[2, 5, 6, 3, 7, 8, 9, 3], [2, 6, 5, 3, 9, 8, 7, 3]])


def loss(second):
    """Of two rows: the first has its answer at 4, the second at `second`."""
    place = torch.tensor([4, second])
    return model(input_ids=rows, start_positions=place, end_positions=place).loss.item()


place = torch.tensor([4])
alone = model(input_ids=rows[:1], start_positions=place, end_positions=place).loss.item()
losses = {place: loss(place) for place in (0, -1, -100, 8, 99)}
print("first row alone:", round(alone, 4), "both, by the second's position:", losses)
assert losses[-1] == losses[-100] == losses[0] != alone, "changed: negative positions"
assert abs(losses[8] - alone) < 1e-6 and abs(losses[99] - alone) < 1e-6, "changed: positions behind the row"
PY
