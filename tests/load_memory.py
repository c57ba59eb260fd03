"""Prints the host memory that loading a checkpoint takes at its peak, and the weights' size.

    python tests/load_memory.py DIRECTORY [FSDP]    # two integers, bytes; FSDP: on so many devices

Reads the peak of resident memory that Linux keeps (VmHWM), set back before loading; getrusage's
would include the parent's.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models import module_parts
from jaxllm.nn.sharding import make_mesh, parameter_sharding
from jaxllm.pretrained import formats, hf
from jaxllm.trees import map_params


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def main(directory: Path, fsdp: int) -> None:
    config = hf.load_config(directory)
    _, abstract = module_parts(config, "masked-lm")
    if fsdp > 1:
        mesh = make_mesh(1, fsdp, 1, devices=jax.devices()[:fsdp])
        abstract = map_params(
            lambda path, x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=parameter_sharding(mesh, path, x.shape)
            ),
            abstract,
        )
    jax.block_until_ready(jnp.zeros(8) + 1)  # the backend is up
    size = sum(
        int(np.prod(t.shape)) * t.dtype.itemsize for t in formats.read_tensors(directory).values()
    )
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    params, _ = hf.load_params(directory, config, abstract, init=np.zeros)
    jax.block_until_ready(params)
    print(resident("VmHWM") - before, size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
