"""The package as it is imported: quickly, with nothing heavy, and with the guard for XLA on CPU."""

import logging
import os
import subprocess
import sys
import tomllib
import types
from importlib.metadata import version
from pathlib import Path

import pytest

import jaxllm
from jaxllm.runtime import cpu_guard

ROOT = Path(__file__).parent.parent
AFFECTED = cpu_guard.affected(version("jaxlib"))
FLAG = cpu_guard.setting()


def python(code: str, **environment: str) -> str:
    """The standard output of `code` in a new process that has no XLA_FLAGS but those given."""
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light():
    """Of what is not Python's own, nothing but jaxllm: so it takes a tenth of a second."""
    code = "import sys; before = set(sys.modules); import jaxllm; print(*set(sys.modules) - before)"
    imported = {name.partition(".")[0] for name in python(code).split()}
    assert imported - sys.stdlib_module_names == {"jaxllm"}


def test_config_needs_no_jsonargparse():
    python(
        "import sys; sys.modules['jsonargparse'] = None\n"
        "from jaxllm.config.reading import Config\nConfig()"
    )


@pytest.mark.parametrize("name", [name for name in jaxllm.__all__ if name.startswith("Auto")])
def test_model_classes_come_from_auto(name):
    from jaxllm import auto

    assert name in dir(jaxllm)
    assert getattr(jaxllm, name) is getattr(auto, name)


def test_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="'jaxllm' has no attribute 'AutoModelForPoetry'"):
        jaxllm.AutoModelForPoetry  # noqa: B018


def test_every_folder_is_a_package():
    folders = {file.parent for file in (ROOT / "jaxllm").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_torch_is_required_by_no_light_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras) >= {"cuda13", "tpu", "quickstart", "test", "parity", "bench", "dev"}
    light = project["dependencies"] + extras["test"] + extras["dev"]
    assert not [name for name in light if name.startswith("torch")]
    assert "torch==2.13.0" in extras["parity"]


# The expression of which jaxlib 0.10.2 computes NaN or numbers like 1e27 on CPU.
EXPRESSION = """
import jax, jax.numpy as jnp, numpy as np
f = jax.jit(lambda c, e: jnp.sum((e @ jnp.full_like(e, c)) * e, -1))
e = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
right = ((e.astype(np.float64) @ np.full(e.shape, 2.0)) * e).sum(-1)
print(bool(np.abs(np.asarray(f(2.0, e)) - right).max() < 1e-2))
"""


# Products with broadcast, random and batched operands, each then multiplied and reduced; without
# the guard about one in ten is wrong by orders of magnitude.
MANY = """
import jax, jax.numpy as jnp, numpy as np
rng, worst = np.random.default_rng(0), 0.0
shapes = [(8, 8), (64, 64), (3, 64, 64), (7, 12, 64, 32), (2, 5, 33, 17)]
for shape in shapes:
    k = shape[-1]
    e, w, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, (k, k), (k,)))
    batched = jnp.broadcast_to(b, (*shape[:-2], k, k))
    for m in (jnp.full((k, k), 1.3), jnp.broadcast_to(b, (k, k)), w, batched):
        values = [lambda e, m, axis=axis: jnp.sum((e @ m) * e, axis) for axis in (-1, -2, None)]
        for f in (*values, jax.grad(values[-1])):
            got, eager = jax.jit(f)(e, m), None
            with jax.disable_jit():
                eager = f(e, m)
            worst = max(worst, float(jnp.abs(got - eager).max() / jnp.abs(eager).max()))
print(worst < 1e-4)
"""


def test_guarded_products_are_right():
    assert python("import jaxllm" + MANY, JAX_PLATFORMS="cpu").split() == ["True"]


@pytest.mark.parametrize("imports", ["import jaxllm", "import jax, jaxllm"])
def test_guarded_expression_is_right(imports):
    assert python(imports + EXPRESSION, JAX_PLATFORMS="cpu").split() == ["True"]


@pytest.mark.skipif(not AFFECTED, reason="this jaxlib is not affected")
def test_guard_is_what_makes_it_right():
    if python(EXPRESSION, JAX_PLATFORMS="cpu").split() == ["True"]:
        pytest.skip("this processor does not show the fault")
    assert python("import jaxllm" + EXPRESSION, JAX_PLATFORMS="cpu").split() == ["True"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("0.10.1", False),
        ("0.10.2", True),
        ("0.11.0", True),
        ("0.11.2", True),
        ("0.11.2.dev20260101", True),
        ("0.11.3", False),
        ("0.12.0", False),
        ("1.0", False),
    ],
)
def test_affected_versions(number, expected):
    assert cpu_guard.affected(number) is expected


@pytest.fixture
def jaxlib(monkeypatch):
    """Sets the version the guard sees, before JAX has started."""

    def set_version(number):
        monkeypatch.setattr(cpu_guard.importlib.metadata, "version", lambda name: number)

    monkeypatch.setattr(cpu_guard, "_unsaid", [])
    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", None)
    return set_version


def test_flag_is_appended(jaxlib):
    jaxlib("0.10.2")
    environment = {"XLA_FLAGS": "--xla_one=1"}
    assert cpu_guard.apply(environment) is True
    assert environment == {"XLA_FLAGS": f"--xla_one=1 {FLAG}"}
    assert cpu_guard.apply(environment) is False
    empty: dict[str, str] = {}
    assert cpu_guard.apply(empty) is True
    assert empty == {"XLA_FLAGS": FLAG}


@pytest.mark.parametrize(
    ("cpuinfo", "value"),
    [("flags : avx2 avx512f fma\n", "-reduce"), ("flags : avx2 fma\n", ""), (None, "")],
)
def test_the_flag_is_the_faster_one_of_the_processor(tmp_path, cpuinfo, value):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert cpu_guard.setting(file) == f"--xla_cpu_experimental_ynn_fusion_type={value}"


def test_own_setting_is_left_alone(jaxlib):
    jaxlib("0.10.2")
    environment = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=something"}
    assert cpu_guard.apply(environment) is False
    assert environment == {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=something"}


def test_unaffected_version_sets_nothing(jaxlib):
    jaxlib("0.11.3")
    environment: dict[str, str] = {}
    assert cpu_guard.apply(environment) is False
    assert environment == {}


def test_said_once_when_the_log_shows_it(jaxlib, caplog):
    jaxlib("0.10.2")
    cpu_guard.apply({})
    with caplog.at_level(logging.WARNING, "jaxllm"):
        cpu_guard.announce()
    assert caplog.messages == []
    with caplog.at_level(logging.INFO, "jaxllm"):
        cpu_guard.announce()
        cpu_guard.announce()
    assert len(caplog.messages) == 1
    assert FLAG in caplog.messages[0]


def test_a_process_that_starts_anew_finds_the_flags_of_its_user(jaxlib, caplog):
    jaxlib("0.10.2")
    environment = {"XLA_FLAGS": "--xla_foo=1"}
    cpu_guard.apply(environment)
    cpu_guard.withdraw(environment)
    assert environment == {"XLA_FLAGS": "--xla_foo=1"}
    with caplog.at_level(logging.INFO, "jaxllm"):
        cpu_guard.announce()
    assert caplog.messages == []
    cpu_guard.withdraw(environment)  # nothing is left to take back
    assert environment == {"XLA_FLAGS": "--xla_foo=1"}


def test_too_late_is_a_warning(jaxlib, monkeypatch, caplog):
    jaxlib("0.10.2")
    started = types.SimpleNamespace(backends_are_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", started)
    environment: dict[str, str] = {}
    assert cpu_guard.apply(environment) is False
    assert environment == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "import jaxllm before" in caplog.text


def test_backends_started_asks_jax():
    code = (
        "import jaxllm.runtime.cpu_guard as g, jax; print(g.backends_started()); "
        "jax.devices(); print(g.backends_started())"
    )
    assert python(code, JAX_PLATFORMS="cpu").split() == ["False", "True"]
