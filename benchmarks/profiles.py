"""The top operations of a trace that ``jax.profiler`` wrote, by the device's time."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from jax.profiler import ProfileData


@dataclass(frozen=True)
class Operation:
    """All runs of one operation of the program, or of one kernel where it has no name there."""

    name: str
    kernel: str
    runs: int
    milliseconds: float


def operations(directory: str) -> list[Operation]:
    """Every operation under `directory`, the longest first; none where nothing was traced."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    runs: dict[tuple[str, str], int] = defaultdict(int)
    for path in Path(directory).rglob("*.xplane.pb"):
        planes = list(ProfileData.from_file(str(path)).planes)
        chips = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in chips or planes:
            for line in plane.lines:
                # A GPU's lines are its streams; a TPU's operations are on one of its lines.
                if chips and not (line.name.startswith("Stream") or line.name == "XLA Ops"):
                    continue
                for event in line.events:
                    operation = dict(event.stats).get("hlo_op")
                    if operation is None and line.name != "XLA Ops":
                        continue
                    key = (str(operation or event.name), event.name)
                    seconds[key] += event.duration_ns / 1e6
                    runs[key] += 1
    found = [Operation(*key, runs[key], seconds[key]) for key in seconds]
    return sorted(found, key=lambda operation: -operation.milliseconds)


def table(directory: str, steps: int, count: int = 25) -> str:
    """Markdown: milliseconds a step of the `count` longest, and of all together."""
    found = operations(directory)
    total = sum(operation.milliseconds for operation in found)
    head = ["| operation | kernel | runs a step | ms a step | share |"]
    head.append("| --- | --- | ---: | ---: | ---: |")
    rows = [
        f"| {one.name} | {one.kernel[:60]} | {one.runs / steps:g} | "
        f"{one.milliseconds / steps:.3f} | {one.milliseconds / total:.1%} |"
        for one in found[:count]
    ]
    return "\n".join([*head, *rows, f"| all | | | {total / steps:.3f} | |\n"])
