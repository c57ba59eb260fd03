"""The rooms of the package and their floors: every import goes down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxllm"
# From the ground up; rooms of one floor know nothing of each other.
FLOORS = [
    ["errors"],
    ["files", "trees"],
    ["runtime"],
    ["config"],
    ["nn"],
    ["attention", "names"],
    ["models"],
    ["pretrained"],
    ["adapters"],
    ["data"],
    ["training", "metrics", "generation"],
    ["prediction"],
    ["runs"],
    ["tasks"],
    ["api", "auto"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, room) of each import out of the package, those within functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == "jaxllm":
                names = [f"jaxllm.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "jaxllm":
                room = rest.partition(".")[0]
                found.append((node.lineno, room if room in FLOOR else "__init__"))
    return found


def arrows() -> dict[tuple[str, str], list[str]]:
    """(from, to) -> where, between different rooms."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        for line, other in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if other != room:
                found.setdefault((room, other), []).append(f"{path.relative_to(PACKAGE)}:{line}")
    return found


def test_every_room_has_a_floor():
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} == set(FLOOR)


def test_every_import_goes_down():
    up = {arrow: where for arrow, where in arrows().items() if FLOOR[arrow[1]] >= FLOOR[arrow[0]]}
    assert up == {}


@pytest.mark.parametrize(
    ("code", "rooms"),
    [
        ("from jaxllm.data.rows import Row", ["data"]),
        ("def f():\n    from jaxllm import models, __version__", ["models", "__init__"]),
        ("import jaxllm.runs.loop\nimport jax", ["runs"]),
    ],
)
def test_imports_are_found(code, rooms):
    assert [room for _, room in imported(ast.parse(code))] == rooms
