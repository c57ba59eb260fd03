"""The removed Flax classes' side of the suite: transformers 4.57, a text a row, padded to the
longest of all, since `jax.jit` compiles one shape.

The step is that of its examples: logits of every token, cross entropy where there is a label. It
runs in an environment of its own, since jaxllm needs a transformers without these classes.
"""

import importlib.metadata
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import (
    CONFIG_MAPPING,
    FlaxAutoModel,
    FlaxAutoModelForMaskedLM,
    FlaxAutoModelForSequenceClassification,
)

from benchmarks.stepping import Batch, JaxSteps, Steps, facts_of_jax, serve
from benchmarks.texts import BATCHES, GATE_ROWS, IGNORED, digest, padded_batches
from benchmarks.workloads import StepJob

CLASSES = {
    "mlm": FlaxAutoModelForMaskedLM,
    "classify": FlaxAutoModelForSequenceClassification,
    "encode": FlaxAutoModel,
}


def gate(job: StepJob) -> dict[str, Any]:
    """As the other sides', of the same texts, in float32 and without dropout."""
    model = load(job, jnp.float32)
    with jax.default_matmul_precision("highest"):
        (batch,) = batches(job, model, 1, GATE_ROWS)
        if job.workload.kind == "encode":
            x_BTD = np.asarray(model(**batch.arrays).last_hidden_state)
            real = np.asarray(batch.arrays.get("attention_mask", np.ones(x_BTD.shape[:2]))) > 0
            return {"outputs": digest(x_BTD[real])}
        loss, grads = jax.value_and_grad(objective(model, None))(model.params, batch.arrays)
        return {"loss": float(loss), "grad_norm": float(optax.global_norm(grads))}


def prepare(job: StepJob) -> Steps:
    """The batches on the device, and what computes one."""
    model = load(job, jnp.dtype(job.workload.dtype))
    data = batches(job, model, BATCHES, job.workload.batch)
    if job.workload.kind == "encode":
        encode = jax.jit(lambda params, arrays: model(**arrays, params=params).last_hidden_state)
        return JaxSteps(encode, model.params, data, moves=False)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))

    def step(state: Any, arrays: Any) -> Any:
        params, opt_state, key = state
        key, dropout = jax.random.split(key)
        loss, grads = jax.value_and_grad(objective(model, dropout))(params, arrays)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), loss

    state = (model.params, tx.init(model.params), jax.random.key(0))
    return JaxSteps(jax.jit(step, donate_argnums=0), state, data)


def objective(model: Any, key: Any) -> Any:
    """(params, arrays) -> mean cross entropy; with a `key` there is dropout."""

    def loss(params: Any, arrays: dict[str, jax.Array]) -> jax.Array:
        inputs = {name: x for name, x in arrays.items() if name != "labels"}
        train = {} if key is None else {"train": True, "dropout_rng": key}
        logits = model(**inputs, params=params, **train).logits.astype(jnp.float32)
        labels = arrays["labels"]
        asked = labels != IGNORED
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels * asked)
        return (entropy * asked).sum() / asked.sum()

    return loss


def load(job: StepJob, dtype: Any) -> Any:
    values = job.workload.config()
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    return CLASSES[job.workload.kind].from_pretrained(job.model, config=config, dtype=dtype)


def batches(job: StepJob, model: Any, count: int, height: int) -> list[Batch]:
    """`count` batches, a row for each text, on the device."""
    made = padded_batches(job.workload, model.config.vocab_size, count, height, one_shape=True)
    return [
        replace(batch, arrays={k: jnp.asarray(x, jnp.int32) for k, x in batch.arrays.items()})
        for batch in made
    ]


def facts() -> dict[str, Any]:
    """As jaxllm's, and the versions here, which are not those of the other sides."""
    packages = ("transformers", "jax", "flax")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {**facts_of_jax(), "versions": versions}


if __name__ == "__main__":
    serve(gate=gate, prepare=prepare, facts=facts)
