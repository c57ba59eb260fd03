"""The labelled rows of a comparison: read from tab-separated files, drawn, written for workers."""

import csv
import gzip
import json
import random
from pathlib import Path

from jaxllm.errors import InputError

Example = tuple[str, ...]  # one text or two, and the label


def select(
    train: str,
    dev: str,
    count: int | None,
    columns: tuple[str, ...] = ("sentence", "label"),
    *,
    header: list[str] | None = None,
    regression: bool = False,
) -> tuple[list[Example], list[Example]]:
    """`count` training rows (None: all) that do not occur in dev, drawn with a fixed seed; and all
    of dev. See `read_table`.
    """
    known = read_table(dev, columns, header)
    seen = {_key(row) for row in known}
    rows = [row for row in read_table(train, columns, header) if _key(row) not in seen]
    count = len(rows) if count is None else count
    if not 1 <= count <= len(rows):
        raise InputError(
            f"--examples {count}: {train} has {len(rows)} rows that {dev} does not have; "
            f"choose 1 to {len(rows)}"
        )
    random.Random(0).shuffle(rows)
    unknown = {row[-1] for row in known} - {row[-1] for row in rows[:count]}
    if unknown and not regression:
        raise InputError(
            f"{dev}: label {sorted(unknown)[0]!r} is on none of the {count} training rows drawn; "
            "choose more --examples"
        )
    return rows[:count], known


def read_table(path: str, columns: tuple[str, ...], header: list[str] | None) -> list[Example]:
    """The columns, the label last, of a tab-separated file, .gz or not.

    header: the names of the file's columns; None = they are in its first line.
    """
    opener = gzip.open if path.endswith(".gz") else open
    expected = " and ".join(columns)
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = next(reader, []) if header is None else header
            if not set(columns) <= set(names):
                raise InputError(f"{path}: columns {names}; expected {expected}")
            at = [names.index(column) for column in columns]
            rows = []
            for row in reader:
                if len(row) <= max(at):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, expected {expected}"
                    )
                rows.append(tuple(row[i] for i in at))
            return rows
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _key(row: Example) -> str:
    return "\t".join(" ".join(text.split()).casefold() for text in row[:-1])


def write_json_lines(path: Path, rows: list[Example]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for *texts, label in rows:
            example = dict(zip(("text", "pair"), texts, strict=False)) | {"label": label}
            file.write(json.dumps(example) + "\n")
