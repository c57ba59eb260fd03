"""What callers hand to the public classes, checked: keywords, and how to compute."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from jaxllm.attention.backends import ATTENDS
from jaxllm.errors import InputError
from jaxllm.models import FAMILIES, Compute
from jaxllm.models.blocks import REMAT_POLICIES
from jaxllm.names.attributes import BOOKKEEPING, nearest

DTYPES = ("float32", "bfloat16", "float16")
# transformers' keyword -> what to do here
_INSTEAD = {
    "torch_dtype": 'give dtype="bfloat16" or dtype="float32"',
    "attn_implementation": f"give attention=, {', '.join(ATTENDS)} or a function",
    "_do_init": "leave it out: parameters are always loaded, and model.params may be replaced",
    "from_pt": "leave it out: the format of the weights is found by the names of the files",
    "from_flax": "leave it out: the format of the weights is found by the names of the files",
    "trust_remote_code": "leave it out: code of a checkpoint is never run",
    "device_map": "use jax.default_device, or jax.device_put on model.params",
    "cache_dir": "set HF_HOME",
    "token": "set HF_TOKEN",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "revision": "give the directory that huggingface_hub.snapshot_download returns",
    "subfolder": "give the folder as part of the path",
    "train": "give key=jax.random.key(0): a key turns dropout on",
    "deterministic": "leave key= out: without a key there is no dropout",
    "dropout_rng": "give it as key=",
    "return_dict": "leave it out: outputs have names, and to_tuple()",
}


def check_keywords(
    given: Collection[str], arguments: Collection[str], *, attributes: bool = True
) -> None:
    """InputError for the first keyword that is not one of `arguments`.

    attributes: whether those of a config are keywords, too; but not those without an effect, such
    as a length to generate.
    """
    known, expected = set(arguments), ", ".join(arguments)
    if attributes:
        tables = [family.table for family in FAMILIES.values()]
        known |= BOOKKEEPING.union(*(table.attributes.effective for table in tables))
        known -= _INSTEAD.keys()
        expected += " or an attribute of the model's config"
    for name in given:
        if name in _INSTEAD:
            raise InputError(f"{name}=: a keyword of transformers, not of jaxllm; {_INSTEAD[name]}")
        if name not in known:
            raise InputError(f"{name}=: expected {expected}{nearest(name, known)}")


def dtype_name(dtype: Any) -> str:
    """One of DTYPES, of a name, a jax.numpy or numpy type, or a dtype.

    Raises:
        InputError: it is another, or none.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise InputError(f"dtype: found {dtype!r:.80}, expected one of {', '.join(DTYPES)}")
    return name


def compute_of(dtype: Any, attention: Any, remat: Any, unroll: Any) -> Compute:
    """How a model is computed, see `Compute`.

    Raises:
        InputError: a value that is not implemented; an attention that cannot be the key of a
            compiled program, as it has no hash.
    """
    if not (callable(attention) or (isinstance(attention, str) and attention in ATTENDS)):
        raise InputError(
            f"attention: found {attention!r:.80}, expected one of {', '.join(ATTENDS)}, or a "
            "function of (q, k, v, visibility, dropout_rate=, key=)"
        )
    try:
        hash(attention)
    except TypeError as error:
        raise InputError(
            f"attention: found {attention!r:.80}, which has no hash; give a function, or define "
            "__hash__: a program is compiled for each"
        ) from error
    policies = ("none", *REMAT_POLICIES)
    if remat not in policies:
        raise InputError(f"remat: found {remat!r:.80}, expected one of {', '.join(policies)}")
    if isinstance(unroll, bool) or not isinstance(unroll, int) or unroll < 0:
        raise InputError(
            f"unroll: found {unroll!r:.80}, expected how many blocks one iteration of the scan "
            "computes, or 0 for all of them"
        )
    return Compute(dtype_name(dtype), attention, remat, unroll)
