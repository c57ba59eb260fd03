"""Equal programs are compiled once, though different runs of a process trace them."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

_DIRECTORY, _SHORTEST = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Keeps what is compiled within, in a directory of its own that goes at the end.

    Where JAX's compilation cache is in use already (JAX_COMPILATION_CACHE_DIR), that one serves.
    """
    if jax.config.values[_DIRECTORY] is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="jaxllm-compiled-") as directory:
        before = jax.config.values[_SHORTEST]
        jax.config.update(_SHORTEST, 0.0)
        _use(directory)
        try:
            yield
        finally:
            _use(None)
            jax.config.update(_SHORTEST, before)


def _use(directory: str | None) -> None:
    jax.config.update(_DIRECTORY, directory)
    compilation_cache.reset_cache()  # JAX decides once whether there is a cache
