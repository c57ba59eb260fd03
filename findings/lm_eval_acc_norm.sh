#!/usr/bin/env bash
# EleutherAI's evaluation harness, whose multiple-choice tasks have an accuracy normalised by length.
#
# Guess: acc_norm divides the log-likelihood of a choice by its length in bytes.
# Found: it divides by the number of characters; acc_bytes divides by bytes. In text that is not ASCII they choose
# differently.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q lm-eval==0.4.13
cat > two.jsonl <<'DATA'
{"question": "Q", "choices": ["éé", "abc"], "answer": 1}
DATA
cat > two.yaml <<'TASK'
task: two
dataset_path: json
dataset_kwargs: {data_files: {test: two.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc_norm}, {metric: acc_bytes}]
TASK
HF_DATASETS_CACHE=$work/cache venv/bin/python - <<'PY'
import importlib.metadata

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

print("lm-eval", importlib.metadata.version("lm-eval"))


class Fixed(LM):
    """Both choices of a log-likelihood of -6 and -7.5."""

    def loglikelihood(self, requests):
        return [(-6.0 if "é" in request.args[1] else -7.5, False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


manager = TaskManager(include_path=".", include_defaults=False)
found = lm_eval.simple_evaluate(Fixed(), tasks=["two"], task_manager=manager, bootstrap_iters=0)
scores = {name.split(",")[0]: x for name, x in found["results"]["two"].items()}
print("acc_norm", scores["acc_norm"], "acc_bytes", scores["acc_bytes"])
# By characters -3 and -2.5: the second, the right one. By bytes -1.5 and -2.5: the first.
assert scores["acc_norm"] == 1, "changed: acc_norm does not divide by characters"
assert scores["acc_bytes"] == 0, "changed: acc_bytes does not divide by bytes"
PY
