"""How a model is computed, whatever it is: `Compute`."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.attention.backends import attention_on
from jaxllm.config.fields import ModelConfig


@dataclass(frozen=True)
class Compute:
    """Settings of a computation. They change its speed, its memory and its rounding, nothing else.

    Attributes:
        dtype: of the computation; parameters are float32.
        attention: a name in attention.backends.ATTENDS, or a function, see `backends.Given`.
        remat: none, full, or dots (REMAT_POLICIES in blocks.py).
        unroll: blocks in one iteration of the scan, 0 = all.
    """

    dtype: np.dtype | str = "float32"
    attention: str | Callable[..., jax.Array] = "xla"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))


def computation(model: ModelConfig, mesh: Mesh) -> Compute:
    """How the model is computed on the mesh's devices.

    Raises:
        InputError: attention that does not run on the mesh's devices.
    """
    attention = attention_on(model.attention, mesh)
    return Compute(model.dtype, attention, model.remat, model.unroll)
