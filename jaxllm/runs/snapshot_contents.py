"""What is in a snapshot's directory: jaxllm.json, and the state as trees that Orbax takes."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax

from jaxllm.trees import flatten, leaf_at, unflatten

FORMAT = "jaxllm checkpoint 1"
ABOUT = "jaxllm.json"


def read_about(directory: Path) -> dict[str, Any]:
    """{"about": …, "files": …} of jaxllm.json; any exception where it is damaged."""
    content = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    body = json.dumps([content["about"], content["files"]])
    if content["about"]["format"] != FORMAT:
        raise ValueError(f"format is {content['about']['format']!r}, not {FORMAT!r}")
    if zlib.crc32(body.encode()) != content["crc32"]:
        raise ValueError("its content has changed since")
    return content


def sealed(about: dict[str, Any], files: dict[str, Any]) -> str:
    """The text of jaxllm.json, with a checksum of its own."""
    body = json.dumps([about, files])
    about, files = json.loads(body)  # tuples become lists, keys strings: as it will be read
    return json.dumps({"about": about, "files": files, "crc32": zlib.crc32(body.encode())})


def list_files(directory: Path) -> dict[str, tuple[int, int]]:
    """{name: (size, CRC-32)} of the files that hold the arrays."""
    return {
        str(file.relative_to(directory)): (file.stat().st_size, _crc32(file))
        for item in ("params", "state")
        for file in sorted((directory / item).rglob("*"))
        if file.is_file() and file.name != "commit_success.txt"  # Orbax writes that one last
    }


def find_damage(directory: Path) -> str | None:
    """What is not as `list_files` found it, or None."""
    for name, (size, crc) in read_about(directory)["files"].items():
        file = directory / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if _crc32(file) != crc:
            return f"the content of {name} has changed since"
    return None


def _crc32(file: Path) -> int:
    crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def leaves(state: Any) -> list[tuple[str, Any]]:
    """[("params/blocks/mlp/up/kernel", array), …] of any registered tree."""
    return list(flatten(state).items())


def describe(state: Any) -> dict[str, str]:
    """{"params/blocks/mlp/up/kernel": "float32[2,3]", …}"""
    return {path: f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in leaves(state)}


def split(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, the rest) as nested dicts of strings: Orbax needs none of our classes."""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for path, x in leaves(state):
        parts[not path.startswith("params/")][path.removeprefix("params/")] = x
    return unflatten(parts[0]), unflatten(parts[1])


def join(shape: Any, params: dict[str, Any], rest: dict[str, Any]) -> Any:
    """The inverse of `split`, into the structure of `shape` (a state, or only its parameters)."""
    arrays = []
    for path, _ in leaves(shape):
        tree = rest if rest and not path.startswith("params/") else params
        arrays.append(leaf_at(tree, path.removeprefix("params/")))
    return jax.tree.unflatten(jax.tree.structure(shape), arrays)
