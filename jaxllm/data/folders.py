"""Folders of texts: each file is a text, and the name of its folder the label, as IMDB comes."""

import hashlib
import logging
import os
import zlib
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from jaxllm.config.fields import DataConfig
from jaxllm.data.lines import beyond, open_text, sha256, too_long, unreadable
from jaxllm.data.rows import Row, Source
from jaxllm.errors import InputError
from jaxllm.files import reading

_LOG = logging.getLogger(__name__)
# IMDB's folder of reviews that have no label, beside those of the classes.
UNLABELLED = "unsup"


class _Text(NamedTuple):
    """One file. name: as messages have it, "pos/0_9.txt"."""

    path: Path
    label: str

    @property
    def name(self) -> str:
        return f"{self.label}/{self.path.name}"


def folder_source(folder: Path, data: DataConfig, *, labelled: bool) -> Source:
    """The files in the folders of `folder`; where it has none, its own files.

    The folders take turns, so that the first rows (``data.max_train_examples``) are of all of them.
    Files beside folders, such as IMDB's word counts, are left out; so are names that begin with a
    dot and, of texts with labels, `UNLABELLED`, unless ``data.labels`` has it.

    Raises:
        InputError: a folder holds no file, or its folders hold folders; settings that are not for
            one text and one label a file.
    """
    _check(folder, data)
    texts = _texts(folder, data, labelled)

    def fingerprint() -> str:
        digest = hashlib.sha256()
        for text in texts:
            digest.update(f"{text.name!r} {sha256(text.path)}\n".encode())
        return digest.hexdigest()

    def rows() -> Iterator[Row]:
        for number, text in enumerate(texts, 1):
            yield _row(number, text, data, labelled)

    return Source(str(folder), fingerprint, rows, unit="file")


def _check(folder: Path, data: DataConfig) -> None:
    for key, value, expected in (
        ("data.format", data.format, ("auto", "text")),
        ("data.text_pair", data.text_pair, (None,)),
        ("data.choices", data.choices, (None,)),
    ):
        if value not in expected:
            raise InputError(
                f"{folder}: is a folder, in which a file is one text and its folder the label; "
                f"{key}: found {value!r}, expected {expected[0] or 'null'}"
            )
    if isinstance(data.label, list):
        raise InputError(
            f"{folder}: is a folder, in which a file is one text and its folder the label; "
            f"data.label: found the columns {data.label}, expected one label a text"
        )


def _texts(folder: Path, data: DataConfig, labelled: bool) -> list[_Text]:
    """All texts of a folder in their order."""
    folders, files = _content(folder)
    if not folders:
        return [_Text(path, Path(os.path.abspath(folder)).name) for path in files]
    if files:
        _LOG.info("%s: files beside the folders are left out: %s", folder, _shown(files))
    skipped = [f for f in folders if f.name == UNLABELLED and f.name not in (data.labels or [])]
    if labelled and skipped:
        _LOG.info(
            "%s: left out, as its texts have no label; data.labels can name it", folder / UNLABELLED
        )
        folders = [f for f in folders if f not in skipped]
    classes = []
    for own in folders:
        deeper, files = _content(own)
        if deeper:
            raise InputError(
                f"{own}: holds the folders {_shown(deeper)}, expected files, each of them a text; "
                f"in place of {folder} name the folders whose folders hold the files"
            )
        classes.append([_Text(path, own.name) for path in files])
    return [text for text in chain(*zip_longest(*classes)) if text is not None]


def _content(folder: Path) -> tuple[list[Path], list[Path]]:
    """(folders, files) of a folder in the order of their names."""
    expected = "a folder with files, each of them a text"
    with reading(folder, expected, "see who may read the folder"):
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: the folder is empty; expected {expected}")
    return [p for p in found if p.is_dir()], [p for p in found if not p.is_dir()]


def _shown(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:5])
    return names if len(paths) <= 5 else f"{names} and {len(paths) - 5} more"


def _row(number: int, text: _Text, data: DataConfig, labelled: bool) -> Row:
    limit, fault = data.max_row_bytes, None
    try:
        with open_text(text.path, data.encoding) as file:
            content = file.read(limit + 1)
    except (UnicodeError, OSError, EOFError, zlib.error) as error:
        # A file is a row: unlike one in the middle of a table it can be dropped alone.
        if data.on_bad_row != "drop":
            raise unreadable(text.path, error, data.encoding) from None
        content, fault = "", "cannot be read"
    if beyond(content, limit):
        content, fault = "", too_long(data)
    label = text.label if labelled else None
    return Row(number, content, label=label, fault=fault, file=text.name)
