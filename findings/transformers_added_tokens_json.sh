#!/usr/bin/env bash
# transformers, which takes tokens from added_tokens.json and not their ids.
#
# Guess: the ids in added_tokens.json are used as they stand, and a token added there is found as it is written.
# Found: beside a vocab.txt of 7 lines {"[E1]": 40} becomes id 7, without a warning, so that the model looks at
# another row of its table; and the text is put in lower case first, so that "[e1]" is the token, too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q transformers==5.24.0
mkdir model
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' marta sings >model/vocab.txt
echo '{"[E1]": 40}' >model/added_tokens.json
echo '{"model_type": "bert", "vocab_size": 41}' >model/config.json
echo '{"tokenizer_class": "BertTokenizer"}' >model/tokenizer_config.json
venv/bin/python - <<'PY' 2>errors || { cat errors >&2; exit 1; }
import transformers

print("transformers", transformers.__version__)
tokenizer = transformers.AutoTokenizer.from_pretrained("model")
found = tokenizer("[E1] marta [e1]", add_special_tokens=False)["input_ids"]
print("the file says 40; the ids of '[E1] marta [e1]' are", found)
assert found == [7, 5, 7], "changed: the ids of added_tokens.json, or the case of its tokens"
PY
if grep added_tokens errors; then
  echo "changed: a warning" >&2
  exit 1
fi
echo "no warning names added_tokens.json"
