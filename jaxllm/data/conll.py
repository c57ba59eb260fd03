"""Sentences out of CoNLL files: a word and its tag on a line, a blank line between sentences."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxllm.config.fields import DataConfig
from jaxllm.data.lines import too_long
from jaxllm.data.rows import CHUNK, Row, columns_of
from jaxllm.errors import InputError

# A line that stands between documents in the files of CoNLL-2003, and of 2012.
_DOCUMENT = re.compile(r"-DOCSTART-(\s|$)|#(begin|end) document\b")
_CONLLU = ["id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"]
# Where words are numbered: a contraction of words is 3-4, a word that is left out 8.1 (CoNLL-U).
_NO_WORD = re.compile(r"[0-9]+[-.][0-9]+|#.*", re.DOTALL)


def sentences(
    where: str, lines: Iterable[str], data: DataConfig, *, labelled: bool
) -> Iterator[Row]:
    """Rows whose text is a list of words and whose label is the list of their tags.

    Columns are separated by tabs or, in a line without one, by spaces. The words are in column
    ``data.text`` of ``data.columns`` and the tags in ``data.label``; without ``data.columns`` in
    the first and the last. If the first numbers the words, the words are in the second; ten columns
    are then those of CoNLL-U, where a tag `_` is none, and of other files with more than three
    ``data.columns`` must be given. Comments are left out (see `_Layout.is_comment`).

    A row's number is that of its first word's line; of a row with a fault, that of the faulty line.

    Raises:
        InputError: there is no column for the tags, or it cannot be told.
    """
    blocks = _blocks(lines, data)
    head: list[list[_Line] | Row] = []
    size = 0
    for block in itertools.islice(blocks, CHUNK):
        head.append(block)
        size += 0 if isinstance(block, Row) else sum(len(x) for line in block for x in line.fields)
        if size > data.max_row_bytes:
            break
    layout = None
    for block in itertools.chain(head, blocks):
        if isinstance(block, Row):
            yield block
            continue
        if layout is None:
            there = [block for block in head if not isinstance(block, Row)] or [block]
            layout = _layout(where, there, data, labelled)
        if words := layout.words(block):
            yield layout.row(words, labelled)


class _Line(NamedTuple):
    number: int
    fields: list[str]
    tabs: bool


@dataclass(frozen=True)
class _Layout:
    """What the lines of a file look like.

    width: columns of a line.
    word_at, tag_at: the columns of words and tags.
    tabs: whether tabs separate them.
    numbered: the first column numbers the words of a sentence.
    conllu: the columns are those of CoNLL-U.
    tags: those of the lines that cannot be comments.
    """

    width: int
    word_at: int
    tag_at: int
    tabs: bool
    numbered: bool
    conllu: bool
    tags: frozenset[str]

    def is_comment(self, line: _Line) -> bool:
        """Whether a line before the first word of a sentence is a comment, not a word.

        One that begins with # is, if it has other than the columns of a word, or is a # alone and
        its tag is that of no other line: `# id 7 domain=train`.
        """
        if len(line.fields) != self.width:
            return _may_be_comment(line)
        known = line.tabs == self.tabs and line.fields[self.tag_at] in self.tags
        return line.fields[0] == "#" and not known

    def words(self, block: list[_Line]) -> list[_Line]:
        """The lines of a block that hold words."""
        lines = itertools.dropwhile(self.is_comment, block)
        return [x for x in lines if not (self.numbered and _NO_WORD.fullmatch(x.fields[0]))]

    def row(self, lines: list[_Line], labelled: bool) -> Row:
        """The row of the lines of a sentence's words."""
        for line in lines:
            if len(line.fields) != self.width:
                return Row(line.number, [], fault=f"other than {self.width} columns")
        words = [line.fields[self.word_at] for line in lines]
        tags = [line.fields[self.tag_at] for line in lines]
        if self.conllu:
            tags = ["" if tag == "_" else tag for tag in tags]
        numbers = [line.number for line in lines]
        return Row(numbers[0], words, label=tags if labelled else None, lines=numbers)


def _layout(where: str, blocks: list[list[_Line]], data: DataConfig, labelled: bool) -> _Layout:
    """The layout of a file that begins with `blocks`."""
    surely = [list(itertools.dropwhile(_may_be_comment, block)) for block in blocks]
    surely = [block for block in surely if block] or blocks
    first = surely[0][0]
    width = len(data.columns or first.fields)
    if labelled and width == 1:
        raise InputError(
            f"{where}, line {first.number}: found one column, expected a word and its tag, with a "
            "tab or spaces between"
        )
    numbered = 2 * sum(map(_is_numbered, surely)) > len(surely)
    conllu = numbered and data.columns is None and width == len(_CONLLU)
    columns = _CONLLU if conllu else data.columns
    word_at, tag_at = int(numbered), -1
    if columns is not None:
        if conllu and data.text == DataConfig.text:
            data = replace(data, text="form")
        columns_of(where, columns, data, labelled)  # each is there once
        word_at = columns.index(data.text)
        tag_at = columns.index(data.label_columns[0]) if labelled else -1
    elif numbered and width == 2:
        raise InputError(f"{where}: found words and their numbers, expected also their tags")
    elif numbered and width != 3:
        more = [f"column{i}" for i in range(4, width + 1)]
        raise InputError(
            f"{where}: found words with their numbers in {width} columns, expected the names of "
            "the columns, among them data.text and data.label; for example data.columns: "
            f"[{', '.join(['id', data.text, *data.label_columns, *more])}]"
        )
    lines = itertools.chain.from_iterable(surely)
    tags = frozenset(line.fields[tag_at] for line in lines if len(line.fields) == width)
    return _Layout(width, word_at, tag_at, first.tabs, numbered, conllu, tags)


def _may_be_comment(line: _Line) -> bool:
    return line.fields[0].startswith("#")


def _is_numbered(block: list[_Line]) -> bool:
    numbers = [line.fields[0] for line in block if not _NO_WORD.fullmatch(line.fields[0])]
    return bool(numbers) and numbers == [str(i + 1) for i in range(len(numbers))]


def _blocks(lines: Iterable[str], data: DataConfig) -> Iterator[list[_Line] | Row]:
    """The lines between blank ones and document marks, with their columns; a row with a fault where
    they are too long, and no more unless such rows are dropped.
    """
    block: list[_Line] = []
    fault: Row | None = None
    size = 0
    for number, line in enumerate(lines, 1):
        fields = _fields(line)
        size += len(line)
        if line and (not fields or _DOCUMENT.match(line)):
            if fault or block:
                yield fault or block
            block, fault, size = [], None, 0
        elif fault is None and (size > data.max_row_bytes or not line):  # "": a line too long
            fault = Row(number, [], fault=too_long(data))
            if data.on_bad_row != "drop":
                break
        elif fault is None:
            block.append(_Line(number, fields, "\t" in line))
    if fault or block:
        yield fault or block


def _fields(line: str) -> list[str]:
    """The columns of a line; none if it is blank. A word may hold other spaces than ASCII's."""
    if not line.strip():
        return []
    if "\t" in line:
        return [field.strip(" \r\n") for field in line.split("\t")]
    return re.split(" +", line.strip(" \r\n"))
