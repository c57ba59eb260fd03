"""What the pictures of a run share: colours, how axes look, names in any script, writing."""

import functools
import io
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jaxllm.files import write_atomic

_LONGEST = 24  # characters of a name
# Fonts of many scripts, the first to be looked at where DejaVu lacks a character.
_WIDE = ("Noto", "Source Han", "WenQuanYi", "PingFang", "Hiragino", "Microsoft", "SimHei", "Arial")


def colours(count: int) -> list[Any]:
    """So many colours, no two of them the same, and neighbours far apart."""
    from matplotlib import colormaps

    if count <= 10:
        return list(colormaps["tab10"].colors[:count])  # type: ignore[attr-defined]
    stride = next(s for s in range(round(0.38 * count), count) if math.gcd(s, count) == 1)
    return [colormaps["turbo"](0.05 + 0.9 * (i * stride % count) / count) for i in range(count)]


def plain(axes: Any, **labels: str) -> None:
    """A light grid, no frame to the right and above; `labels` as in `Axes.set`."""
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend_outside(axes: Any, lines: int) -> None:
    """The legend to the right of the axes, in small print where it is long."""
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        borderaxespad=0.0,
        fontsize=9 if lines <= 15 else 7,
        ncols=-(-lines // legend_rows(lines)),
    )


def legend_rows(lines: int) -> int:
    """How many rows a legend outside has."""
    return lines if lines <= 30 else -(-lines // 2)


def save(figure: Any, path: Path) -> None:
    """Writes a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    write_atomic(path, buffer.getvalue())


def written(names: Sequence[str]) -> tuple[list[str], AbstractContextManager]:
    """Names as a picture can show them, all different; and a context with the fonts it takes.

    A long name is cut. One with a character that no font here has is shown as its number, as in the
    report's confusion matrix.
    """
    from matplotlib import rc_context

    plain_font = _files()["DejaVu Sans"]
    missing = {c for name in names for c in name} - _characters(plain_font)
    font = _font_with(frozenset(missing)) if missing else None
    if font is not None:
        missing -= _characters(_files()[font])
    texts = []
    for i, name in enumerate(names):
        cut = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        # A dollar would begin mathematics, and a legend leaves out what begins with an underscore.
        cut = cut.replace("$", r"\$")
        cut = f" {cut}" if cut.startswith("_") else cut
        texts.append(str(i) if missing & set(name) or not name.strip() else cut)
    if len(set(texts)) < len(texts):
        texts = [f"{i} {text}" for i, text in enumerate(texts)]
    return texts, rc_context({"font.family": ["DejaVu Sans", *([font] if font else [])]})


@functools.lru_cache
def _font_with(characters: frozenset[str]) -> str | None:
    """The font here that has most of the characters; None where none has one."""
    best, most = None, 0
    for name, file in sorted(
        _files().items(), key=lambda item: (not item[0].startswith(_WIDE), item)
    ):
        found = len(characters & _characters(file))
        if found > most:
            best, most = name, found
        if most == len(characters):
            break
    return best


@functools.lru_cache
def _files() -> dict[str, str]:
    """The upright fonts of normal weight that are here, and their files."""
    from matplotlib.font_manager import fontManager

    return {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular")
        # Matplotlib's own Last Resort has a box for every character.
        if entry.stretch == "normal" and not entry.name.startswith("Last Resort")
    }


@functools.lru_cache
def _characters(file: str) -> frozenset[str]:
    from matplotlib.font_manager import get_font

    charmap: Iterable[int] = get_font(file).get_charmap()
    return frozenset(map(chr, charmap))
