"""What one process compiles, the next one finds."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxllm.runtime import compile_cache

NAMES = ("jax_compilation_cache_dir", *compile_cache._SETTINGS)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No compilation cache, and a user's cache of its own; all as before afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: jax.config.values[name] for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()  # JAX decides once whether there is a cache
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_equal_programs_are_compiled_once(tmp_path):
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))

    def compile_it():
        jax.jit(lambda x: x * 3.25 + 1.5)(np.ones(7, np.float32))
        return hits.count("/jax/compilation_cache/cache_hits")

    compile_cache.enable()
    assert (compile_it(), compile_it()) == (0, 1)
    assert any((tmp_path / "jaxllm" / "compiled").iterdir())


def test_a_cache_of_the_user_s_own_is_left_as_it_is(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    before = {name: jax.config.values[name] for name in NAMES}
    compile_cache.enable()
    assert {name: jax.config.values[name] for name in NAMES} == before
