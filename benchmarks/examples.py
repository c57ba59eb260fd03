"""What a comparison learns and is judged on: read from public files, drawn, written for workers."""

import csv
import gzip
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from jaxllm.config.reading import DataConfig
from jaxllm.errors import InputError

Example = tuple[str, ...]  # one text or two, and the label
DEV_ARTICLES = 2


@dataclass(frozen=True)
class Content:
    """The two parts of a comparison.

    Attributes:
        task: jaxllm's `model.task`.
        metric: the figure that says how good the outcome is.
        labels: of texts or of words; none: numbers are predicted, or spans.
        train, dev: the content of a file: JSON lines with "text", perhaps "pair", and "label" (both
            lists where words have tags); of questions, JSON in SQuAD's schema.
        examples: rows, sentences or questions in `train` and in `dev`.
    """

    task: str
    metric: str
    labels: list[str]
    train: str
    dev: str
    examples: tuple[int, int]

    def write(self, directory: Path) -> dict[str, Any]:
        """Writes both files; the fields of a `Job` that say what they are."""
        for part in ("train", "dev"):
            (directory / part).write_text(getattr(self, part), encoding="utf-8")
        files = {part: str(directory / part) for part in ("train", "dev")}
        return {"task": self.task, "metric": self.metric, "labels": self.labels, **files}


def labelled(
    train: str,
    dev: str,
    *,
    count: int | None,
    columns: tuple[str, ...] = ("sentence", "label"),
    header: list[str] | None = None,
    regression: bool = False,
) -> Content:
    """Rows of text, see `select`."""
    chosen, known = select(train, dev, count, columns, header=header, regression=regression)
    return Content(
        "sequence-classification",
        "pearson" if regression else "accuracy",
        [] if regression else sorted({label for *_, label in chosen}),
        *(_json_lines(map(_named, rows)) for rows in (chosen, known)),
        (len(chosen), len(known)),
    )


def tagged(train: str, dev: str, *, count: int | None) -> Content:
    """Sentences of CoNLL files, the first `count` of `train`."""
    from jaxllm.data.conll import sentences  # numpy: not for a call of --help

    parts = []
    for path in (train, dev):
        with _opened(path) as file:
            rows = sentences(path, file, DataConfig(train=[path]), labelled=True)
            parts.append([{"text": row.text, "label": row.label} for row in rows])
    chosen, known = parts[0][:count], parts[1]
    tags = {tag for row in [*chosen, *known] for tag in row["label"]}
    return Content(
        "token-classification",
        "f1",
        sorted(tags, key=lambda tag: (tag != "O", tag)),
        *(_json_lines(rows) for rows in (chosen, known)),
        (len(chosen), len(known)),
    )


def questions(path: str, *, count: int | None) -> Content:
    """The first `count` questions of a file in SQuAD's schema, and those of the last articles."""
    from jaxllm.data.squad import Faults, read_squad, squad_sources

    faults, data = Faults("train"), DataConfig(train=[path])
    read_squad(squad_sources(data, "train"), data, faults=faults, limit=None, only_aligned=True)
    faults.finish(kept=1, on_bad_row="error")  # any mistake in the file is told here
    with _opened(path) as file:
        articles = json.load(file)["data"]
    if len(articles) <= DEV_ARTICLES:
        raise InputError(f"{path}: {len(articles)} articles, expected more than {DEV_ARTICLES}")
    chosen, known = articles[:-DEV_ARTICLES], articles[-DEV_ARTICLES:]
    left = count
    for paragraph in _paragraphs(chosen):
        paragraph["qas"] = paragraph["qas"][:left]
        left = None if left is None else left - len(paragraph["qas"])
    numbers = [sum(len(p["qas"]) for p in _paragraphs(part)) for part in (chosen, known)]
    return Content(
        "question-answering",
        "best_f1",  # of any threshold: at 0 a model that has not learned much answers nothing
        [],
        *(json.dumps({"data": part}) for part in (chosen, known)),
        (numbers[0], numbers[1]),
    )


def _paragraphs(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for article in articles:
        yield from article["paragraphs"]


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
    expected = " and ".join(columns)
    with _opened(path) as file:
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


@contextmanager
def _opened(path: str) -> Iterator[IO[str]]:
    """A text file, .gz or not; InputError where it cannot be read."""
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            yield cast(IO[str], file)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _key(row: Example) -> str:
    return "\t".join(" ".join(text.split()).casefold() for text in row[:-1])


def _named(row: Example) -> dict[str, str]:
    *texts, label = row
    return dict(zip(("text", "pair"), texts, strict=False)) | {"label": label}


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
