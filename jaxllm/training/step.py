"""TrainState and the jitted steps: pure functions, no I/O.

A step is `state, batch -> state, metrics`. Losses, gradients and metrics are sums with their
weights until the one division, so one batch of 8 examples equals 2 x 4 equals 8 x 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.nn.sharding import replicated, state_shardings
from jaxllm.runtime import memory
from jaxllm.training.objectives import Batch, Metrics, Objective
from jaxllm.training.optim import FlatParams, trainable
from jaxllm.trees import flatten, unflatten


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    step: jax.Array  # int32 scalar: optimizer steps done
    params: dict[str, Any]
    opt_state: optax.OptState
    key: jax.Array  # uint32 [2], raw data of a random key; a step's own key is fold_in(key, step)


def split_frozen(params: Any, frozen: list[str]) -> tuple[FlatParams, FlatParams]:
    """(trained, frozen) parts of a parameter tree, flat."""
    flat = flatten(params)
    kept = {path: x for path, x in flat.items() if not trainable(path, frozen)}
    return {path: x for path, x in flat.items() if path not in kept}, kept


def init_state(
    params: Any, tx: optax.GradientTransformation, mesh: Mesh, *, seed: int, frozen: list[str]
) -> TrainState:
    """The state at step 0; optimizer state is born in the shardings of its parameters."""

    def opt_init(params: Any) -> optax.OptState:
        return tx.init(split_frozen(params, frozen)[0])

    shapes = jax.eval_shape(opt_init, params)
    shardings = state_shardings(mesh, shapes)
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        *(shapes, shardings),
    )
    memory.check(
        memory.bytes_of((params, placed)),
        "parameters and optimizer state",
        "use more devices with mesh.fsdp, a smaller model, or an optimizer that keeps less",
    )
    whole = replicated(mesh)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), whole),
        params=params,
        opt_state=jax.jit(opt_init, out_shardings=shardings)(params),
        key=jax.device_put(jax.random.key_data(jax.random.key(seed)), whole),
    )


def state_shapes(state: Any) -> Any:
    """ShapeDtypeStructs with shardings of a tree of arrays: what a snapshot restores into."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    *,
    clip_norm: float,
    accumulation: int,
    frozen: list[str],
    whole_batch: Callable[[Batch], Batch] = lambda batch: batch,
    penalty: Callable[[FlatParams], jax.Array] | None = None,
    base: FlatParams | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step, its state donated.

    `clip_norm` bounds the global norm of the gradient (0 = off), `accumulation` splits the batch's
    rows into that many micro-batches, `frozen` are patterns of parameter paths that stay as they
    are.

    `whole_batch` adds to the batch what the objective needs to know of all of it.

    `penalty` of the trained parameters is added to the loss that is told; its gradient is the
    optimizer's business.

    `base`: parameters beside those of the state, which no step changes and no snapshot holds.

    Metrics: those of the objective, and grad_norm (before clipping).
    """

    def grad_sums(trained: FlatParams, kept: FlatParams, batch: Batch, key: jax.Array) -> tuple:
        def loss(trained: FlatParams) -> tuple:
            params = unflatten({**kept, **trained})
            loss_sum, (metrics, _) = objective(params, batch, key)
            return loss_sum, metrics

        return jax.grad(loss, has_aux=True)(trained)

    def accumulated(trained: FlatParams, kept: FlatParams, batch: Batch, key: jax.Array) -> tuple:
        # Row i goes to micro-batch i % accumulation: each device splits its own rows, none moves.
        micro = {
            name: x.reshape((-1, accumulation, *x.shape[1:])).swapaxes(0, 1)
            for name, x in batch.items()
        }

        def body(total: Any, part: tuple) -> tuple:
            index, batch = part
            sums = grad_sums(trained, kept, batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, sums), None

        first = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(grad_sums, trained, kept, first, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(body, zeros, (jnp.arange(accumulation), micro))[0]

    def step(
        state: TrainState, batch: Batch, base: FlatParams | None = None
    ) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
            trained, kept = split_frozen(state.params, frozen)
            sums = grad_sums if accumulation == 1 else accumulated
            grads, metrics = sums(trained, {**(base or {}), **kept}, whole_batch(batch), key)
            # Mean and clipping are one factor, multiplied in where the optimizer reads the
            # gradient: on CPU a division of its own is one more pass over all parameters, and so is
            # a square that is then summed.
            per_weight = 1.0 / jnp.maximum(metrics["loss"][1], 1e-8)
            norm = global_norm(grads) * per_weight
            metrics["grad_norm"] = (norm, jnp.ones(()))
            if penalty is not None:
                loss_sum, weight = metrics["loss"]
                metrics["loss"] = (loss_sum + penalty(trained) * weight, weight)
            factor = per_weight * (jnp.minimum(1.0, clip_norm / norm) if clip_norm else 1.0)
            grads = jax.tree.map(lambda g: g * factor, grads)
            updates, opt_state = tx.update(grads, state.opt_state, trained)
            params = unflatten({**kept, **optax.apply_updates(trained, updates)})
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return partial(jitted, base=base) if base else jitted


def global_norm(grads: FlatParams) -> jax.Array:
    return jnp.sqrt(sum(sum_squares(g) for g in grads.values()))


def sum_squares(x: jax.Array) -> jax.Array:
    """The sum of squares, first over up to 32 slabs of the leading axis.

    XLA on CPU cuts a reduction longer than 32 into windows and no longer fuses the square into it:
    45 ms instead of 3 for a [30522, 384] table on two cores. The barrier keeps it from merging the
    two sums into one.
    """
    if x.ndim < 2:
        return jnp.vdot(x, x)
    slabs = max(k for k in range(1, 33) if x.shape[0] % k == 0)
    by_slab = jnp.square(x).reshape(slabs, x.shape[0] // slabs, -1).sum(0)
    return jnp.sum(jax.lax.optimization_barrier(by_slab))


def make_eval_step(objective: Objective, mesh: Mesh) -> Callable[[Any, Batch], tuple[Metrics, Any]]:
    """The jitted `params, batch -> metrics, outputs`; outputs whole on every device."""

    def step(params: Any, batch: Batch) -> tuple[Metrics, Any]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            _, (metrics, outputs) = objective(params, batch, None)
        return metrics, outputs

    return jax.jit(step, out_shardings=replicated(mesh))
