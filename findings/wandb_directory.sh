#!/usr/bin/env bash
# wandb, whose own directory of runs passes for the package.
#
# Guess: where wandb is not installed, `import wandb` fails, and a program can go on without it.
# Found: wandb.init leaves a directory wandb/ where a run was started. In that directory Python takes it for a
# namespace package: the import succeeds, and the first use fails with AttributeError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q wandb==0.31.0
WANDB_SILENT=true WANDB_MODE=offline venv/bin/python - <<'PY'
import wandb

print("wandb", wandb.__version__)
with wandb.init(project="finding") as run:
    run.log({"loss": 1.0})
PY
venv/bin/pip uninstall -q -y wandb
venv/bin/python - <<'PY'
import sys

sys.path[0] = ""  # as in a program that is started with -m or from a notebook
import wandb

print("uninstalled, and yet imported:", wandb)
found = hasattr(wandb, "init")
print("it has wandb.init:", found)
assert wandb.__file__ is None and not found, "changed: what the directory holds"
PY
