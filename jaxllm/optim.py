"""Schedules, optimizers by name, decay masks, penalties: optax transforms over a flat dict {path:
array}.

Only trainable parameters are in the dict, so a frozen part costs neither gradient nor optimizer
state.
"""

import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.errors import InputError

if TYPE_CHECKING:
    from jaxllm.config import OptimizerConfig

FlatParams = dict[str, jax.Array]


def learning_rate_schedule(
    config: "OptimizerConfig", total_steps: int
) -> Callable[[Any], jax.Array]:
    """Learning rate at a step (0-based): linear warmup, then the named decay.

    linear and cosine end at 0 after `total_steps`; inverse_sqrt is peak * sqrt(warmup / step)
    (Vaswani et al., 2017).
    `warmup` below 1 is a share of all steps, else a number of steps.
    """
    warmup = _warmup_steps(config, total_steps)
    return lambda step: _rate(config, step, warmup, total_steps)


def _warmup_steps(config: "OptimizerConfig", total_steps: int) -> int:
    warmup = round(config.warmup * total_steps) if config.warmup < 1 else round(config.warmup)
    if warmup > total_steps:
        raise InputError(
            f"optimizer.warmup={config.warmup:g} is longer than the run of {total_steps} steps; "
            "choose a smaller one"
        )
    return warmup


def _rate(config: "OptimizerConfig", step: Any, warmup: Any, total_steps: Any) -> jax.Array:
    step, peak = jnp.asarray(step, jnp.float32), config.learning_rate
    rise = jnp.maximum(warmup, 1)
    rising = peak * step / rise
    done = jnp.clip((step - warmup) / jnp.maximum(total_steps - warmup, 1), 0.0, 1.0)
    if config.schedule == "linear":
        falling = peak * (1 - done)
    elif config.schedule == "cosine":
        falling = peak * 0.5 * (1 + jnp.cos(jnp.pi * done))
    elif config.schedule == "inverse_sqrt":
        falling = peak * jnp.sqrt(rise / jnp.maximum(step, rise))
    else:
        falling = jnp.full_like(step, peak)
    return jnp.where(step < warmup, rising, falling)


class ScheduleState(NamedTuple):
    """Steps done, steps of the warmup, steps of the run; int32 scalars."""

    step: jax.Array
    warmup: jax.Array
    total_steps: jax.Array


def scale_by_schedule(config: "OptimizerConfig", total_steps: int) -> optax.GradientTransformation:
    """Scales by minus the learning rate.

    The run's length is in the state, not in the program: runs that differ in it alone, as those of
    several seeds do, have one program.
    """
    warmup = _warmup_steps(config, total_steps)

    def init(params: FlatParams) -> ScheduleState:
        return ScheduleState(*(jnp.asarray(n, jnp.int32) for n in (0, warmup, total_steps)))

    def update(updates: FlatParams, state: ScheduleState, params: Any = None) -> tuple:
        scale = -_rate(config, state.step, state.warmup, state.total_steps)
        scaled = {path: scale.astype(u.dtype) * u for path, u in updates.items()}
        return scaled, state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)


def is_decayed(path: str) -> bool:
    """Weight decay and penalties apply to kernels and embeddings, not to biases and norms."""
    return path.endswith(("/kernel", "/embedding"))


def trainable(path: str, frozen: list[str]) -> bool:
    return not any(fnmatch.fnmatchcase(path, pattern) for pattern in frozen)


def check_frozen(paths: list[str], frozen: list[str]) -> None:
    """Every pattern must match something, and something must be left to train."""
    for pattern in frozen:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise InputError(
                f"optimizer.frozen: pattern {pattern!r} matches no parameter; "
                f"the paths are {', '.join(paths)}"
            )
    if not any(trainable(path, frozen) for path in paths):
        raise InputError(f"optimizer.frozen={frozen} leaves no parameter to train")


def make_optimizer(config: "OptimizerConfig", total_steps: int) -> optax.GradientTransformation:
    """Add penalties, precondition, decay (decoupled, Loshchilov & Hutter, 2019), scale by layer, by
    learning rate.
    """
    parts = []
    if config.l1 or config.l2:
        parts.append(add_penalties(config.l1, config.l2))
    parts.append(preconditioner(config))
    if config.weight_decay:
        parts.append(
            optax.add_decayed_weights(
                config.weight_decay, mask=lambda params: {p: is_decayed(p) for p in params}
            )
        )
    if config.layer_decay != 1.0:
        parts.append(scale_by_layer(config.layer_decay))
    parts.append(scale_by_schedule(config, total_steps))
    return optax.chain(*parts)


def preconditioner(config: "OptimizerConfig") -> optax.GradientTransformation:
    b1, b2, eps = config.beta1, config.beta2, config.eps
    match config.name:
        case "adamw" | "adam":
            return optax.scale_by_adam(b1, b2, eps)
        case "sgd":
            return optax.identity()
        case "momentum":
            return optax.trace(config.momentum)
        case "rmsprop":
            return optax.chain(
                optax.scale_by_rms(config.beta2, eps, eps_in_sqrt=False),
                optax.trace(config.momentum) if config.momentum else optax.identity(),
            )
        case "adagrad":
            return optax.scale_by_rss(initial_accumulator_value=0.1, eps=eps)
        case "lion":
            return optax.scale_by_lion(b1, b2)
        case "adafactor":
            return optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
    raise InputError(f"optimizer.name={config.name!r} is not known")


def add_penalties(l1: float, l2: float) -> optax.GradientTransformation:
    """The gradient of l1 * |p| + l2 / 2 * p^2 on decayed parameters."""

    def update(grads: FlatParams, params: FlatParams) -> FlatParams:
        return {
            path: g + l1 * jnp.sign(params[path]) + l2 * params[path] if is_decayed(path) else g
            for path, g in grads.items()
        }

    return optax.stateless(update)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al., 2020): decay^(L - l) for block l = 0 … L-1,
    decay^(L + 1) for
    embeddings, 1 for pooler and heads.
    """

    def update(updates: FlatParams, params: FlatParams) -> FlatParams:
        depth = max(
            (x.shape[0] for path, x in params.items() if path.startswith("blocks/")), default=0
        )
        if depth == 0:
            raise InputError(
                f"optimizer.layer_decay={decay:g} needs blocks that are trained; set it to 1.0 or "
                "take blocks/* out of optimizer.frozen"
            )

        def scale(path: str, u: jax.Array) -> jax.Array:
            if path.startswith("blocks/"):
                # A parameter that some blocks lack has the rows of the last blocks.
                by_layer = decay ** jnp.arange(u.shape[0], 0, -1, dtype=jnp.float32)
                return u * by_layer.reshape((-1,) + (1,) * (u.ndim - 1))
            return u * decay ** (depth + 1) if path.startswith("embeddings/") else u

        return {path: scale(path, u) for path, u in updates.items()}

    return optax.stateless(update)
