"""Conventions that no linter knows: names of nnx, legacy JAX, what README and configs promise."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from jaxllm.config import reading

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "jaxllm").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
NNX = {"Module", "Param", "Rngs", "split", "merge", "to_pure_dict", "eval_shape"}
# pmap is legacy, and asking for the default backend breaks compiling for another platform.
BANNED = {"pmap", "default_backend"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names_of_nnx(tree: ast.AST) -> set[str]:
    """What a module uses of flax.nnx, as `nnx.X`, `flax.nnx.X` or `from flax.nnx import X`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nnx", "flax.nnx"):
            names.add(node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flax.nnx"):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.Import | ast.ImportFrom):
            renamed = [a for a in node.names if a.name.endswith("nnx") and a.asname]
            names.update(f"nnx as {alias.asname}" for alias in renamed)
    return names


def trusting_calls(tree: ast.AST) -> list[str]:
    """Calls of transformers' Auto classes that may ask whether to run a checkpoint's code."""
    asked = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    asked = [n for n in asked if re.match(r"Auto\w+\.from_pretrained$", ast.unparse(n.func))]
    return [ast.unparse(n) for n in asked if "trust_remote_code=False" not in ast.unparse(n)]


def prose(source: str) -> list[list[str]]:
    """The paragraphs of a module's docstrings and of its comments, as lines."""
    lines = source.splitlines()
    is_prose = [line.strip().startswith("# ") for line in lines]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            string = node.body[0]
            begin, end = string.lineno - 1, string.end_lineno or 0
            is_prose[begin:end] = [bool(line.strip()) for line in lines[begin:end]]
    found: list[list[str]] = [[]]
    for line, inside in zip(lines, is_prose, strict=True):
        if not inside or (found[-1] and indent_of(line) != indent_of(found[-1][-1])):
            found.append([])
        if inside:
            found[-1].append(line)
    return found


def indent_of(line: str) -> str:
    return re.match(r"\s*(# )?", line)[0]  # type: ignore[index]  (it always matches)


def broken_early(paragraph: list[str]) -> list[str]:
    """Lines that end inside a sentence, although the next word has room on them."""
    found = []
    for line, after in itertools.pairwise(paragraph):
        word = after.removeprefix(indent_of(after)).partition(" ")[0]
        ends = line.endswith((".", ":", ";", "-")) or re.fullmatch(r"[a-z_\d]+:", word)
        if word[:1].islower() and not ends and len(f"{line} {word}") < 95:
            found.append(line)
    return found


def names_used(tree: ast.AST) -> set[str]:
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_these_names_of_nnx(path):
    assert names_of_nnx(ast.parse(path.read_text(encoding="utf-8"))) <= NNX


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_lines_of_prose_are_full(path):
    paragraphs = prose(path.read_text(encoding="utf-8"))
    assert not [line for paragraph in paragraphs for line in broken_early(paragraph)]


def test_a_line_that_is_broken_early_is_found():
    broken = (
        '"""A sentence that\ngoes on.\n\nname: of a field\nother: of one."""\n# so\n# is this\n'
    )
    assert [broken_early(paragraph) for paragraph in prose(broken)] == [
        ['"""A sentence that'],
        [],
        ["# so"],
    ]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_legacy_and_no_default_backend(path):
    assert not names_used(ast.parse(path.read_text(encoding="utf-8"))) & BANNED


@pytest.mark.parametrize(
    "path", [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))], ids=relative
)
def test_no_code_of_a_checkpoint_is_run(path):
    assert not trusting_calls(ast.parse(path.read_text(encoding="utf-8")))


def test_the_greps_find_what_they_look_for():
    tree = ast.parse(
        "from flax import nnx\nfrom flax import nnx as n\nfrom flax.nnx import jit\n"
        "nnx.Linear(1)\nflax.nnx.Optimizer\njax.pmap(f)\nfrom jax import default_backend\n"
    )
    assert trusting_calls(ast.parse("x = AutoConfig.from_pretrained(a, b=1)"))
    assert names_of_nnx(tree) == {"nnx as n", "jit", "Linear", "Optimizer"}
    assert names_used(tree) >= BANNED


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_config_loads(path):
    assert reading.load(["--config", str(path)]) == reading.from_yaml(path)


def test_the_quickstart_has_a_config():
    assert ROOT / "configs" / "quickstart.yaml" in CONFIGS


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_contributing_names_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"^## What is where\n.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    listed = dict(line.split(maxsplit=1) for line in block[1].splitlines())
    assert list(listed) == sorted(f"{path.parent.name}/" for path in SOURCES if is_room(path))


def is_room(path: Path) -> bool:
    return path.name == "__init__.py" and path.parent.parent == ROOT / "jaxllm"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_says_what_it_holds(path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said
    assert len(said.splitlines()[0]) > 15


def test_readme_and_ci_run_the_same_tests():
    command = re.search(r"""^test_command='(.*)'$""", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert command
    line = re.search(r"^\s*(pip install [^#\n]*&& pytest)\s*(#.*)?$", readme(), re.MULTILINE)
    assert line, "README.md has no line `pip install ... && pytest`"
    assert line[1] == command[1] == 'pip install -e ".[test]" && pytest'


# What Orbax calls its own, the directory of a run, and the format of its description.
OTHERS = (
    r"orbax.checkpoint\w*|(Composite|Async)Checkpoint\w+"
    r"|\"checkpoints\"|checkpoints/|jaxllm checkpoint 1"
)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "runs"], ids=relative)
def test_states_of_a_run_are_snapshots(path):
    text = re.sub(OTHERS, "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"(?i).*checkpoint.*", text)
