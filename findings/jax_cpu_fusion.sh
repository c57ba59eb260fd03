#!/usr/bin/env bash
# JAX on CPUs, whose jit turns a product, a multiplication and a sum into NaN or noise.
#
# Guess: jax.jit changes a float32 result in the last digits only.
# Found: jaxlib 0.10.2 fuses a batched matrix product of a constant operand with what follows; for some shapes the
# result is NaN or off by orders of magnitude, without a warning. Without jit, and without this fusion, it is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >sums.py <<'PY'
import os

import jax
import jax.numpy as jnp
import numpy as np


def weighted(x, weight):
    return jnp.sum(jnp.matmul(x, jnp.full_like(x, weight)) * x, axis=-1)


wrong = 0
for batch, n in [(4, 32), (8, 32), (16, 32), (2, 64), (8, 64), (4, 96), (3, 128)]:
    x = np.random.default_rng(n).normal(size=(batch, n, n)).astype(np.float32)
    truth = 0.25 * x.astype(np.float64).sum(-1) ** 2  # each column of x @ weight is a row's sum
    plain, compiled = weighted(x, 0.25), jax.jit(weighted)(x, 0.25)
    assert np.allclose(plain, truth, rtol=1e-3, atol=1e-3), "changed: without jit"
    good = bool(np.allclose(compiled, truth, rtol=1e-3, atol=1e-3))
    wrong += not good
    print(f"[{batch}, {n}, {n}] {'right' if good else 'wrong'}", np.ravel(compiled)[:2])
print("jax", jax.__version__, "XLA_FLAGS", os.environ.get("XLA_FLAGS", "not set"), "wrong", wrong)
raise SystemExit(wrong > 0)
PY
export JAX_PLATFORMS=cpu
if env -u XLA_FLAGS venv/bin/python sums.py; then
  echo "changed: all results are right" >&2
  exit 1
fi
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= venv/bin/python sums.py
