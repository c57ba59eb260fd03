#!/usr/bin/env bash
# tokenizers, whose encode_batch_fast forgets the words as well as the offsets.
#
# Guess: encode_batch_fast leaves out offsets in characters, as its documentation says; word_ids need none, so
# token classification can use it.
# Found: word_ids are None for every token, without a warning; ids and masks are those of encode_batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q tokenizers==0.23.3
venv/bin/python - <<'PY'
import tokenizers
from tokenizers import models, pre_tokenizers

print("tokenizers", tokenizers.__version__)
vocabulary = {"[UNK]": 0, "light": 1, "##house": 2, "keeper": 3}
tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
(slow,) = tokenizer.encode_batch(["lighthouse keeper"])
(fast,) = tokenizer.encode_batch_fast(["lighthouse keeper"])
print("encode_batch:     ", slow.ids, "words", slow.word_ids)
print("encode_batch_fast:", fast.ids, "words", fast.word_ids)
assert slow.ids == fast.ids and slow.word_ids == [0, 0, 1], "changed: encode_batch"
assert fast.word_ids == [None, None, None], "changed: encode_batch_fast keeps words"
PY
