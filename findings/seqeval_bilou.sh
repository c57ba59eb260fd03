#!/usr/bin/env bash
# seqeval, whose default counts every two neighbouring one-word entities of BILOU tags as one.
#
# Guess: seqeval reads U- (a unit: an entity of one word) wherever it reads B-, so f1_score tells two people of
# one word each from one person of two words.
# Found: by default it does not know U- and L-, warns once, and merges them: F1 is 1.0. With mode="strict" and
# scheme=BILOU it is 0.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q seqeval==1.2.2 setuptools==80.9.0
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, Entities

print("seqeval", version("seqeval"))
two_people = ["U-PER", "U-PER", "O"]
one_person = ["B-PER", "L-PER", "O"]
merged = get_entities(two_people)
entities = [e for row in Entities([two_people], BILOU).entities for e in row]
print("two people, by default:", merged)
print("two people, as BILOU:", [(e.tag, e.start, e.end - 1) for e in entities])
default = f1_score([two_people], [one_person])
strict = f1_score([two_people], [one_person], mode="strict", scheme=BILOU)
print("F1 of one person where two are right: by default", default, "and strict", strict)
assert merged == [("PER", 0, 1)] and len(entities) == 2, "changed: entities"
assert (default, strict) == (1.0, 0.0), "changed: F1"
PY
