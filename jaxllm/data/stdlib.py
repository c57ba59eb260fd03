"""The sources of Python's standard library: a corpus of code that every machine has."""

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from jaxllm.config.fields import DataConfig
from jaxllm.data.lines import beyond, too_long
from jaxllm.data.rows import Row, Source
from jaxllm.errors import InputError
from jaxllm.files import reading

# Packages that were installed, and tests, which hold text that is broken on purpose.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def stdlib_source(data: DataConfig) -> Source:
    """Each module of the standard library that runs this program is a document.

    Raises:
        InputError: its sources are not there.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not _LEFT_OUT & set(path.relative_to(folder).parts)
    ]
    if not files:
        raise InputError(
            f"data.corpus: found stdlib, but {folder} holds no sources of the standard library; "
            "run it with a Python that has them, or name files as data.train"
        )

    def text(path: Path) -> str:
        expected = reading(path, "Python source", "repair the Python installation")
        with expected, tokenize.open(path) as file:  # as the encoding that a source declares
            return file.read()

    def fingerprint() -> str:
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def rows() -> Iterator[Row]:
        for number, path in enumerate(files, 1):
            content, name = text(path), str(path.relative_to(folder))
            if beyond(content, data.max_row_bytes):
                yield Row(number, "", fault=too_long(data), file=name)
            else:
                yield Row(number, content, file=name)

    return Source("the standard library", fingerprint, rows, unit="file")
