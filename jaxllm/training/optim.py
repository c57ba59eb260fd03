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
from jaxllm.nn.sharding import letters_of

if TYPE_CHECKING:
    from jaxllm.config.reading import OptimizerConfig

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


def scale_by_schedule(
    config: "OptimizerConfig",
    total_steps: int,
    factor: Callable[[jax.Array, jax.Array], jax.Array] = lambda rate, step: -rate,
) -> optax.GradientTransformation:
    """Scales by a factor of the learning rate and the step, counted from 1: minus the rate.

    The run's length is in the state, not in the program: runs that differ in it alone, as those of
    several seeds do, have one program.
    """
    warmup = _warmup_steps(config, total_steps)

    def init(params: FlatParams) -> ScheduleState:
        return ScheduleState(*(jnp.asarray(n, jnp.int32) for n in (0, warmup, total_steps)))

    def update(updates: FlatParams, state: ScheduleState, params: Any = None) -> tuple:
        rate = _rate(config, state.step, state.warmup, state.total_steps)
        scale = factor(rate, state.step + 1)
        scaled = {path: scale.astype(u.dtype) * u for path, u in updates.items()}
        return scaled, state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)


def is_penalized(config: "OptimizerConfig", path: str) -> bool:
    """Weight decay, l1 and l2 apply to kernels and embeddings, and to LoRA's A and B; with
    `penalize: all` to biases and norms, too.
    """
    names = ("/kernel", "/embedding", "/lora_a", "/lora_b")
    return config.penalize == "all" or path.endswith(names)


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


# What null stands for: torch.optim's defaults, Lion's by its paper; 0 where a name is missing.
OWN_DEFAULTS = {
    "weight_decay": {"adamw": 0.01},
    "beta2": {"adam": 0.999, "adamw": 0.999, "rmsprop": 0.99, "lion": 0.99},
    "eps": {"adam": 1e-8, "adamw": 1e-8, "rmsprop": 1e-8, "adagrad": 1e-10},
    "momentum": {"momentum": 0.9},
}
# Their weight decay is a part of the gradient, as in torch.optim; that of the others is decoupled
# from it (Loshchilov & Hutter, 2019).
COUPLED = ("adam", "sgd", "momentum", "rmsprop", "adagrad")


def setting(config: "OptimizerConfig", name: str) -> float:
    """A number of the config, or the optimizer's own default where that is null."""
    value = getattr(config, name)
    return OWN_DEFAULTS[name].get(config.name, 0.0) if value is None else value


def moves_idle_rows(config: "OptimizerConfig") -> bool:
    """Whether a table's row that no example reaches still decides on the steps of others, or moves
    by more than a decoupled weight decay.

    Adafactor's statistics are over whole arrays; a penalty or a coupled decay is the row's gradient
    and, in the loss that is logged, its share.
    """
    coupled = config.name in COUPLED and setting(config, "weight_decay") > 0
    return config.name == "adafactor" or coupled or config.l1 > 0 or config.l2 > 0


def make_optimizer(config: "OptimizerConfig", total_steps: int) -> optax.GradientTransformation:
    """Add penalties, precondition, decay, scale by layer, by learning rate.

    The steps of each name are those of torch.optim's optimizer of that name, weight decay included
    (COUPLED), but for `is_penalized`; Lion's are those of its paper.
    """
    decay, coupled = setting(config, "weight_decay"), config.name in COUPLED
    decayed = optax.add_decayed_weights(
        decay, mask=lambda ps: {path: is_penalized(config, path) for path in ps}
    )
    parts = [add_penalty_gradient(config)] if config.l1 or config.l2 else []
    if decay and coupled:
        parts.append(decayed)
    parts.append(preconditioner(config, total_steps))
    if decay and not coupled:
        parts.append(decayed)
    if config.layer_decay != 1.0:
        parts.append(scale_by_layer(config.layer_decay))
    parts.append(scale_by_schedule(config, total_steps))
    return optax.chain(*parts)


def preconditioner(config: "OptimizerConfig", total_steps: int) -> optax.GradientTransformation:
    b1, b2, eps, momentum = (
        config.beta1,
        *(setting(config, name) for name in ("beta2", "eps", "momentum")),
    )
    match config.name:
        case "adamw" | "adam":
            return optax.scale_by_adam(b1, b2, eps)
        case "sgd":
            return optax.identity()
        case "momentum":
            return optax.trace(momentum)
        case "rmsprop":
            rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
            return optax.chain(rms, optax.trace(momentum)) if momentum else rms
        case "adagrad":
            return scale_by_adagrad(eps)
        case "lion":
            return optax.scale_by_lion(b1, b2)
        case "adafactor":
            # torch.optim's rate is at most 1 / sqrt(step), its decay is by the rate itself.
            bound = scale_by_schedule(
                config, total_steps, lambda rate, step: 1 / jnp.maximum(1, rate * jnp.sqrt(step))
            )
            return optax.chain(scale_by_adafactor(), bound)
    raise InputError(f"optimizer.name={config.name!r} is not known")


def scale_by_adagrad(eps: float) -> optax.GradientTransformation:
    """Divides by the root of the sum of all squared gradients, plus `eps` (Duchi et al., 2011).

    optax.scale_by_rss has eps under the root.
    """

    def update(grads: FlatParams, state: FlatParams, params: Any = None) -> tuple:
        sums = {path: state[path] + jnp.square(g) for path, g in grads.items()}
        return {path: g / (jnp.sqrt(sums[path]) + eps) for path, g in grads.items()}, sums

    return optax.GradientTransformation(
        lambda ps: {p: jnp.zeros_like(x) for p, x in ps.items()}, update
    )


class FactoredState(NamedTuple):
    """Steps done; of matrices the mean squares over columns and over rows; of vectors the squares
    themselves."""

    step: jax.Array
    v_row: FlatParams
    v_col: FlatParams
    v: FlatParams


def scale_by_adafactor() -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern, 2018) as torch.optim has it, by its defaults: a step is relative
    to the size of the parameter, and clipped at a root mean square of 1.

    A parameter is a matrix or a vector as PyTorch holds it, each layer's its own. optax's Adafactor
    would factor a stack of layers along its two longest axes, a stack of biases across the layers,
    and not at all below 128 rows.
    """
    tiny = float(jnp.finfo(jnp.float32).eps)  # torch's eps1, its eps2 is 1e-3

    def init(params: FlatParams) -> FactoredState:
        seen = {path: as_torch(path, x) for path, x in params.items()}
        rows, cols, whole = {}, {}, {}
        for path, (x, own) in seen.items():
            if len(own) > 1:
                rows[path] = jnp.zeros(x.shape[:-1])
                cols[path] = jnp.zeros((*x.shape[:-2], x.shape[-1]))
            else:
                whole[path] = jnp.zeros_like(params[path])
        return FactoredState(jnp.zeros((), jnp.int32), rows, cols, whole)

    def update(grads: FlatParams, state: FactoredState, params: FlatParams) -> tuple:
        share = (state.step + 1.0) ** -0.8  # of the new gradient in the means

        def mean(old: jax.Array, new: jax.Array) -> jax.Array:
            return old + share * (new - old)

        def rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return jnp.sqrt(jnp.mean(jnp.square(x), axes, keepdims=True))

        rows, cols, whole, updates = {}, {}, {}, {}
        for path, grad in grads.items():
            g, own = as_torch(path, grad)
            square = jnp.square(g)
            if path in state.v:
                estimate = mean(state.v[path].reshape(g.shape), square)
                whole[path] = estimate.reshape(grad.shape)
            else:
                rows[path] = row = mean(state.v_row[path], square.mean(-1))
                cols[path] = col = mean(state.v_col[path], square.mean(-2))
                total = jnp.maximum(row.mean(-1, keepdims=True), tiny)
                estimate = row[..., :, None] * (col / total)[..., None, :]
            u = g * jax.lax.rsqrt(jnp.maximum(estimate, tiny**2))
            size = jnp.maximum(rms(as_torch(path, params[path])[0], own), 1e-3)
            updates[path] = (u * (size / jnp.maximum(rms(u, own), 1.0))).reshape(grad.shape)
        return updates, FactoredState(state.step + 1, rows, cols, whole)

    return optax.GradientTransformation(init, update)


def as_torch(path: str, x: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """(`x` with its heads in one axis, the axes of one layer's parameter)."""
    letters = letters_of(path) or ""
    if "NH" in letters:
        at = letters.index("NH")
        x = x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])
    return x, tuple(range(letters.startswith("L"), x.ndim))


def make_penalty(config: "OptimizerConfig") -> Callable[[FlatParams], jax.Array] | None:
    """What l1 and l2 add to the loss: the sum of l1 * |p| + l2 / 2 * p^2; None without them."""

    def penalty(params: FlatParams) -> jax.Array:
        terms = (
            config.l1 * jnp.sum(jnp.abs(x)) + config.l2 / 2 * jnp.sum(jnp.square(x))
            for path, x in params.items()
            if is_penalized(config, path)
        )
        return sum(terms, jnp.zeros(()))

    return penalty if config.l1 or config.l2 else None


def add_penalty_gradient(config: "OptimizerConfig") -> optax.GradientTransformation:
    """By hand: jax.grad of |p| at 0 is 1, and biases begin there."""

    def slope(path: str, x: jax.Array) -> jax.Array | float:
        return config.l1 * jnp.sign(x) + config.l2 * x if is_penalized(config, path) else 0.0

    def update(grads: FlatParams, params: FlatParams) -> FlatParams:
        return {path: g + slope(path, params[path]) for path, g in grads.items()}

    return optax.stateless(update)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay (Clark et al., 2020): decay^(L - l) for block l = 0 … L-1,
    decay^(L + 1) for embeddings, 1 for pooler and heads.
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
