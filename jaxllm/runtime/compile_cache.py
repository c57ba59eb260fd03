"""Programs that a command compiles are kept in the user's cache, for its next start."""

import jax

from jaxllm.files import user_cache

_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_compilation_cache_max_size": 4 * 2**30,  # bytes; what was used longest ago goes first
}


def enable() -> None:
    """Turns JAX's persistent compilation cache on.

    A directory that is set already (JAX_COMPILATION_CACHE_DIR) is left as it is, with its settings;
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(user_cache() / "compiled"))
