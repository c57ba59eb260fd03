#!/usr/bin/env bash
# matplotlib, which comes with a font that has every character and draws none.
#
# Guess: if a font of matplotlib's list has a character in its charmap, text in this font is readable.
# Found: matplotlib's own "Last Resort" has all of Chinese in its charmap, and draws a box that names the block: two
# characters have one glyph. So a search for a font with a character succeeds on every machine.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q matplotlib==3.11.2
MPLCONFIGDIR=$work venv/bin/python - <<'PY'
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font

print("matplotlib", matplotlib.__version__)
files = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
maps = {file.stem: FT2Font(str(file)).get_charmap() for file in files}
good, bad = (ord(x) for x in "好坏")
having = [name for name, charmap in maps.items() if good in charmap and bad in charmap]
print("of", len(maps), "fonts that come with it, these have 好 and 坏:", having)
assert len(having) == 1 and having[0].startswith("LastResort"), "changed: fonts with Chinese"
charmap = maps[having[0]]
print("glyphs of 好 and 坏:", charmap[good], charmap[bad])
assert charmap[good] == charmap[bad], "changed: they are drawn apart"
PY
