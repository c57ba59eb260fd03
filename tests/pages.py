"""README.md and the pages of docs/ taken apart: their code blocks, and what stands beside them.

An HTML comment above a block, which no reader sees, says how the block is tested:

    <!-- test: OPTIONS -->     options added to each of its jaxllm train, evaluate and glue
    <!-- not run: REASON -->   its options are checked, but nothing is run
    <!-- file: NAME -->        the block is the content of this file
    <!-- fails -->             its last command has exit status 2
    <!-- shown -->             output that is not compared with what the commands print

and anywhere on a page

    <!-- needs: NAME -->       a directory that is there before the page's first block
"""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHINESE = DOCS / "zh"
LISTINGS = DOCS / "listings"
NOTEBOOK = DOCS / "quickstart.ipynb"
NOTES = ("test", "not run", "file", "fails", "shown")

_OURS = re.compile(r"(XLA_FLAGS=--xla_force_host_platform_device_count=8 )?jaxllm ")
_COMMENT = re.compile(r"<!--\s*(\w[\w ]*?)(?::\s*(.*?))?\s*-->")


@dataclass(frozen=True)
class Block:
    """A fenced block: where its text begins, its language, and the comments above it."""

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block, on one line; `typed` is what a pipe hands to jaxllm."""

    line: int
    text: str
    typed: str | None = None

    @property
    def is_ours(self) -> bool:
        return _OURS.match(self.text) is not None

    @property
    def argv(self) -> list[str]:
        """What stands behind `jaxllm`. Tests have eight devices, whatever XLA_FLAGS says."""
        return shlex.split(_OURS.sub("", self.text), comments=True)


def pages() -> list[Path]:
    """The README, the English pages, and those of the listings."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(LISTINGS.glob("*.md"))]


def chinese_pages() -> list[Path]:
    return sorted(CHINESE.glob("*.md"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def needs(page: Path) -> list[str]:
    return re.findall(r"<!-- needs: (.*?) -->", page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    inside: list[str] | None = None
    language, begin = "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and inside is None:
            language, begin, inside = line[3:].strip(), number + 1, []
        elif line.startswith("```") and inside is not None:
            text = "".join(f"{x}\n" for x in inside)
            found.append(Block(name_of(page), begin, language, text, notes))
            inside, notes = None, {}
        elif inside is not None:
            inside.append(line)
        elif comment := _COMMENT.fullmatch(line.strip()):
            notes[comment[1]] = comment[2] or ""
        elif line.strip():
            notes = {}
    assert inside is None, f"{name_of(page)}:{begin}: a block that does not end"
    return found


def cells(notebook: Path) -> list[str]:
    """The code of a notebook, in order."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines that stand in no block, with their numbers."""
    lines: list[tuple[int, str]] = []
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            lines.append((number, line))
    return lines


def commands(block: Block) -> list[Command]:
    """The commands of a bash block: lines joined at a backslash, divided at &&."""
    found: list[Command] = []
    begin = block.line
    text = ""
    for number, line in enumerate(block.text.splitlines(), block.line):
        begin = begin if text else number
        text += line.removesuffix("\\")
        if line.endswith("\\") or not text.strip() or text.startswith("#"):
            text = text if line.endswith("\\") else ""
            continue
        for part in re.split(r"\s&&\s", text.strip()):
            typed, bar, ours = part.rpartition(" | jaxllm ")
            found.append(Command(begin, f"jaxllm {ours}" if bar else part, typed if bar else None))
        text = ""
    return found
