"""The jaxllm side of the suite: the step of ``jaxllm train``, or the encoder alone."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import benchmarks.no_torch  # noqa: F401
import jaxllm
from benchmarks.stepping import Batch, JaxSteps, Steps, facts_of_jax, serve
from benchmarks.texts import BATCHES, GATE_ROWS, Text, digest, row_of_all, texts
from benchmarks.workloads import StepJob
from jaxllm import models
from jaxllm.attention.backends import attention_on
from jaxllm.config.fields import OptimizerConfig
from jaxllm.data.packing import Rows, fill_packed, first_fit, one_per_row, slots, starts_of
from jaxllm.nn.sharding import batch_sharding, make_mesh
from jaxllm.pretrained import hf
from jaxllm.pretrained.storage import OneModel, load_saved
from jaxllm.training import losses
from jaxllm.training.next_tokens import causal_lm
from jaxllm.training.objectives import INPUTS, Objective
from jaxllm.training.optim import make_optimizer
from jaxllm.training.step import init_state, make_train_step

HEADS = {
    "mlm": ("masked-lm", jaxllm.AutoModelForMaskedLM),
    "causal": ("causal-lm", jaxllm.AutoModelForCausalLM),
    "classify": ("sequence-classification", jaxllm.AutoModelForSequenceClassification),
    "encode": ("base", jaxllm.AutoModel),
}
SETTINGS = OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup=0, clip_norm=1.0)


@dataclass(frozen=True)
class Tokens:
    """Texts as `fill_packed` takes them."""

    texts: list[Text]
    tokens: np.ndarray
    type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, found: list[Text]) -> "Tokens":
        tokens = np.concatenate([text.ids for text in found])
        offsets = starts_of(np.array([len(text.ids) for text in found]))
        labels = np.array([text.label for text in found], np.int32)
        return cls(found, tokens, np.zeros_like(tokens), offsets, labels)


def start(job: StepJob) -> dict[str, Any]:
    """Writes the model that all runs start from."""
    config = hf.load_config(None, **job.workload.config())
    HEADS[job.workload.kind][1].from_config(config).save_pretrained(job.model)
    return {"parameters": sum(x.size for x in jax.tree.leaves(_shapes(job)))}


def gate(job: StepJob) -> dict[str, Any]:
    """Loss and gradient norm of some texts, or a figure of the outputs, without dropout."""
    dtype: Any = "bfloat16" if job.variant.fused else "float32"
    workload = replace(job.workload, dropout=0.0, dtype=dtype)
    job = replace(job, workload=workload, variant=replace(job.variant, unroll=1))
    with jax.default_matmul_precision("highest"):
        (batch,) = batches(job, _texts(job, GATE_ROWS), 1)
        if job.workload.kind == "encode":
            encode, params = encoder(job)
            x_BTD = np.asarray(encode(params, batch.arrays), np.float32)
            return {"outputs": digest(x_BTD[np.asarray(batch.arrays["segment_ids"]) > 0])}
        step, state = (pmapped if job.variant.pmap else training)(job)
        _, metrics = step(state, batch.arrays)
        return {name: _mean(metrics[name]) for name in ("loss", "grad_norm")}


def prepare(job: StepJob) -> Steps:
    """The batches on the device, and what computes one."""
    workload = job.workload
    # Texts for a packed row: those of a file are of any length.
    enough = max(4, workload.length // 32) if workload.texts == "file" else 2
    if not job.variant.packed:
        enough = 1
    found = batches(job, _texts(job, BATCHES * workload.batch * enough), BATCHES)
    if workload.kind == "encode":
        return JaxSteps(*encoder(job), found, moves=False)
    return JaxSteps(*(pmapped if job.variant.pmap else training)(job), found)


def training(job: StepJob) -> tuple[Any, Any]:
    """(the jitted step, the state at step 0)."""
    mesh = one_device()
    apply, params = model(job, mesh)
    tx = make_optimizer(SETTINGS, 1000)
    state = init_state(params, tx, mesh, seed=0, frozen=[])
    step = make_train_step(
        objective(job, apply),
        tx,
        state,
        mesh,
        clip_norm=SETTINGS.clip_norm,
        accumulation=1,
        frozen=[],
    )
    return step, state


def pmapped(job: StepJob) -> tuple[Any, Any]:
    """(the step under `jax.pmap` with optax's clipping, its state on each device)."""
    apply, params = model(job, one_device())
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))
    loss = objective(job, apply)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        params, opt_state, key = state
        key, dropout_key = jax.random.split(key)

        def mean_loss(params: Any) -> jax.Array:
            total, (metrics, _) = loss(params, batch, dropout_key)
            return total / metrics["loss"][1]

        value, grads = jax.value_and_grad(mean_loss)(params)
        grads = jax.lax.pmean(grads, "batch")
        updates, opt_state = tx.update(grads, opt_state, params)
        metrics = {"loss": (value, 1.0), "grad_norm": (optax.global_norm(grads), 1.0)}
        return (optax.apply_updates(params, updates), opt_state, key), metrics

    mapped = jax.pmap(step, axis_name="batch", donate_argnums=0, devices=jax.devices()[:1])

    state = (params, tx.init(params), jax.random.key_data(jax.random.key(0)))
    return mapped, jax.tree.map(lambda x: x[None], state)


def one_device() -> Mesh:
    """PyTorch's side has one, too."""
    return make_mesh(devices=jax.devices()[:1])


def encoder(job: StepJob) -> tuple[Any, Any]:
    """(what is jitted: parameters and rows to the last hidden state [B, T, D]; the parameters)."""
    apply, params = model(job, one_device())

    @jax.jit
    def encode(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        inputs = {name: batch[name] for name in ("input_ids", "segment_ids", "token_type_ids")}
        return apply(params, **inputs).last_hidden_state

    return encode, params


def model(job: StepJob, mesh: Mesh) -> tuple[Any, Any]:
    """(the model's pure function, its parameters)."""
    head, _ = HEADS[job.workload.kind]
    variant = job.variant
    one = OneModel(head, hf.load_config(None, **job.workload.config()))
    attention = attention_on(variant.attention, mesh)
    compute = models.Compute(job.workload.dtype, attention, unroll=variant.unroll)
    _, graph, params = load_saved(job.model, one, mesh, compute)
    return models.apply_fn(graph), params


def objective(job: StepJob, apply: Any) -> Objective:
    """Cross entropy where there are labels, at `head_positions` or, without, at every token."""
    if job.workload.kind == "causal":
        return causal_lm(apply, vocabulary=_vocabulary(job))

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array | None) -> tuple:
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        logits = apply(params, **inputs, key=key).logits
        total, weight = losses.cross_entropy(logits, batch["labels"], batch["label_weights"])
        return total, ({"loss": (total, weight)}, ())

    return loss


def batches(job: StepJob, found: list[Text], count: int) -> list[Batch]:
    """`count` batches of the texts, in rows of one text or packed, on the device."""
    workload, sharding = job.workload, batch_sharding(one_device())
    tokens = Tokens.of(found)
    lengths = np.diff(tokens.offsets)
    rows, length = one_per_row(np.arange(len(found))), row_of_all(workload, found)
    if job.variant.packed:
        length = workload.length
        rows = first_fit(
            lengths,
            np.arange(len(found)),
            row_length=length,
            max_per_row=per_row(job),
            window=len(found),
        )
        # As the loader does; they come with the longest texts first.
        rows = rows.permuted(np.random.default_rng(0).permutation(rows.height))
    height = GATE_ROWS if job.action == "gate" else workload.batch
    parts = [rows.between(i * height, (i + 1) * height) for i in range(count)]
    filled = [fill(job, tokens, part, height, length) for part in parts]
    most = max(arrays["label_weights"].shape[1] for arrays in filled)
    for arrays in filled:  # one shape for all
        for name in ("head_positions", "labels", "label_weights"):
            if name in arrays:
                missing = most - arrays[name].shape[1]
                arrays[name] = np.pad(arrays[name], ((0, 0), (0, missing)))
        if job.variant.pmap:  # an axis for the devices
            arrays |= {name: x[None] for name, x in arrays.items()}
    return [
        Batch(
            jax.device_put(arrays, None if job.variant.pmap else sharding),
            int(lengths[part.members].sum()),
            height * length,
        )
        for arrays, part in zip(filled, parts, strict=True)
    ]


def fill(
    job: StepJob, found: Tokens, rows: Rows, height: int, length: int
) -> dict[str, np.ndarray]:
    """The arrays of one batch; of a masked LM the head's positions are the masked ones."""
    arrays = fill_packed(found, rows, row_length=length, max_per_row=per_row(job), height=height)
    if job.workload.kind == "causal":
        return next_tokens(arrays["input_ids"], arrays["segment_ids"])
    if job.workload.kind != "mlm":
        return arrays
    begins_BP = arrays.pop("head_positions")
    asked: list[list[tuple[int, int]]] = [[] for _ in range(height)]  # (position, label) of a row
    for row in range(rows.height):
        members = rows.between(row, row + 1).members
        for begin, text in zip(begins_BP[row], (found.texts[i] for i in members), strict=False):
            places = (int(begin) + text.masked).tolist()
            asked[row] += zip(places, text.originals.tolist(), strict=True)
    shape = (height, max(map(len, asked)) if job.variant.masked_head else length)
    positions, labels = (np.zeros(shape, np.int32) for _ in range(2))
    weights = np.zeros(shape, np.float32)
    for row, pairs in enumerate(asked):
        for slot, (position, label) in enumerate(pairs):
            at = slot if job.variant.masked_head else position
            positions[row, at], labels[row, at], weights[row, at] = position, label, 1
    arrays |= {"labels": labels, "label_weights": weights}
    return {**arrays, "head_positions": positions} if job.variant.masked_head else arrays


def next_tokens(ids_BT: np.ndarray, segments_BT: np.ndarray) -> dict[str, np.ndarray]:
    """A batch that asks at each token of a text for the next one, at the last for none."""
    labels_BT, weights_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, np.float32)
    labels_BT[:, :-1] = ids_BT[:, 1:]
    weights_BT[:, :-1] = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
    weights = {"label_weights": weights_BT, "text_weights": weights_BT}
    return {"input_ids": ids_BT, "segment_ids": segments_BT, "labels": labels_BT, **weights}


def per_row(job: StepJob) -> int:
    """Texts of a row at most."""
    return slots(job.workload.length) if job.variant.packed else 1


def _texts(job: StepJob, count: int) -> list[Text]:
    return texts(job.workload, _vocabulary(job), count)


def _vocabulary(job: StepJob) -> int:
    return hf.load_config(None, **job.workload.config()).vocab_size


def _shapes(job: StepJob) -> Any:
    config = hf.load_config(None, **job.workload.config())
    return models.module_parts(config, HEADS[job.workload.kind][0])[1]


def _mean(sums: tuple[jax.Array, jax.Array]) -> float:
    total, weight = (np.asarray(x).item() for x in sums)  # one number, on however many axes
    return total / weight


if __name__ == "__main__":
    serve(start=start, gate=gate, prepare=prepare, facts=facts_of_jax)
