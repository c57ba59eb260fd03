#!/usr/bin/env bash
# peft around a BERT for question answering.
#
# Guess: a model wrapped by get_peft_model with new adapters, whose product is zero, gives the outputs of the model.
# Found: with task_type QUESTION_ANS the wrapper takes token_type_ids and does not hand them on: the logits are those
# without types, and another answer may win.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q peft==0.21.2 transformers==5.24.0 torch==2.13.0
venv/bin/python - <<'PY' 2>/dev/null
import peft
import torch
from transformers import BertConfig, BertForQuestionAnswering

print("peft", peft.__version__)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForQuestionAnswering(BertConfig(vocab_size=99, initializer_range=0.3, **sizes)).eval()
inputs = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]]),
    "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]]),
}
with torch.no_grad():
    expected = model(**inputs).start_logits
    without = model(input_ids=inputs["input_ids"]).start_logits
    config = peft.LoraConfig(task_type="QUESTION_ANS", target_modules=["query", "value"])
    wrapped = peft.get_peft_model(model, config).eval()
    found = wrapped(**inputs).start_logits
print("largest difference to the model", (found - expected).abs().max().item())
print("largest difference to the model without types", (found - without).abs().max().item())
assert (found - expected).abs().max() > 0.1, "changed: types are handed on"
assert torch.allclose(found, without), "changed: the outputs are not those without types"
PY
