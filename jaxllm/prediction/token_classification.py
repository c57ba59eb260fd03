"""Answers text with the entities in it, or with a tag a word: prediction of a token classifier."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm.data.builder import text_fault
from jaxllm.data.tags import OUTSIDE, Scheme, scheme_of
from jaxllm.data.tokenizer import WordEncoder
from jaxllm.metrics.classification import softmax
from jaxllm.prediction.batched import BatchSizes, EncodedLine, Predictor
from jaxllm.prediction.classification import short
from jaxllm.prediction.inputs import WORDS, InputFormat, RowError, column, columns
from jaxllm.prediction.saved import SavedModel
from jaxllm.prediction.texts import no_tokens, rows_of
from jaxllm.pretrained.labels import label_names
from jaxllm.pretrained.saving import INPUT_FILE

# Han, kana: scripts without spaces, of which each character is a word, as in Chinese CoNLL files.
_CHARACTER = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"


@dataclass(frozen=True)
class Tagger(Predictor):
    """`entities`: each with `type`, `text`, `start`, `end` (characters; end excluded) and `score`;
    of plain tags, `tags`: likewise, one a word, with `tag`, null (and no `score`) where a word has
    no token or was cut off.

    An entity is what `Scheme.entities` makes of the most probable tag of each word, as in
    evaluation; its score is the mean probability of these tags. Words that were cut off are in no
    entity.

    repaired: tags out of order are first set right, see `Scheme.retagged`, and not left out, as in
        evaluation, which is strict. For models from elsewhere, many of which learned IOB1 and begin
        entities with I. Their labels mark entities if one of them is O.
    """

    encoder: WordEncoder
    names: list[str]
    scheme: Scheme
    repaired: bool

    @classmethod
    def of(cls, model: SavedModel, batch_sizes: BatchSizes) -> "Tagger":
        """The predictor of a saved model; InputError where its labels do not tell what they are."""
        form, names = model.form, label_names(model.config)
        wanted = "entities" if form.tags == "auto" and OUTSIDE in names else form.tags
        scheme = scheme_of(names, wanted, "the model's labels (id2label)")
        encoder = WordEncoder(model.tokenizer, form.max_length, form.truncation)
        repaired = not (model.directory / INPUT_FILE).is_file()
        logits = model.forward(lambda out: out.logits)
        return cls(form, batch_sizes, logits, encoder, names, scheme, repaired)

    def parse(self, row: Any) -> "Words":
        return words_of(row, self.form)

    def encode(self, asked: list["Words"]) -> list[EncodedLine | RowError]:
        encoded, numbers = self.encoder.encode_words([text.words for text in asked])
        numbers_of = np.split(numbers, np.cumsum(encoded.lengths)[:-1])
        lengths = encoded.full_lengths.tolist()
        columns = zip(asked, rows_of(encoded), numbers_of, strict=True)
        return [
            EncodedLine([row], lengths[i] > len(row.tokens), (text, numbers_T))
            if len(row.tokens)
            else no_tokens("the text", encoded, i, self.form)
            for i, (text, row, numbers_T) in enumerate(columns)
        ]

    def answer(self, asked: tuple["Words", np.ndarray], outputs: list[Any]) -> dict[str, Any]:
        text, numbers_T = asked
        first = np.flatnonzero(numbers_T >= 0)
        share_WC = softmax(outputs[0][first])
        tags: list[str | None] = [None] * len(text.words)
        shares = np.zeros(len(text.words))
        for word, share_C in zip(numbers_T[first], share_WC, strict=True):
            tags[word] = self.names[int(share_C.argmax())]
            shares[word] = share_C.max()

        def found(name: str, tag: str | None, begin: int, end: int) -> dict[str, Any]:
            start, stop = text.starts[begin], text.starts[end - 1] + len(text.words[end - 1])
            place = {name: tag, "text": text.text[start:stop], "start": start, "end": stop}
            return place | ({} if tag is None else {"score": short(shares[begin:end].mean())})

        if self.scheme.plain:
            return {"tags": [found("tag", tag, i, i + 1) for i, tag in enumerate(tags)]}
        marks = [tag or OUTSIDE for tag in tags]
        if self.repaired:
            marks = self.scheme.retagged(marks)
        return {"entities": [found("type", *span) for span in self.scheme.entities(marks)]}


@dataclass(frozen=True)
class Words:
    """A text, the words in it, and the character at which each begins."""

    text: str
    words: list[str]
    starts: list[int]


def words_of(row: Any, form: InputFormat) -> Words:
    """The words of a row: those of its `tokens`, if it has them, else those in its text.

    Characters of `tokens` count as if the words stood with a space between.

    Raises:
        RowError: what is wrong with the row.
    """
    row = columns(row, form)
    if WORDS not in row:
        return split_words(column(row, form.text))
    words = row[WORDS]
    if not isinstance(words, list | tuple) or not words:
        raise RowError(f"{WORDS!r}: expected a list of words")
    for i, word in enumerate(words):
        if fault := text_fault(word, "word"):
            raise RowError(f"{WORDS!r}, word {i + 1}: {fault}")
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    return Words(" ".join(words), list(words), [0, *ends[:-1]])


def split_words(text: str) -> Words:
    """Words as CoNLL files divide text: at spaces, and at punctuation around a word.

    `U.S.-based (Kyoto)` gives `U.S.-based`, `(`, `Kyoto`, `)`. A Chinese or Japanese character is a
    word.
    """
    starts: list[int] = []
    words: list[str] = []
    for match in re.finditer(rf"{_CHARACTER}|(?:(?!{_CHARACTER})\S)+", text):
        begin, end = match.span()
        left, right = begin, end
        while left < right and _is_punctuation(text[left]):
            left += 1
        while right > left and _is_punctuation(text[right - 1]):
            right -= 1
        spans = [(i, i + 1) for i in range(begin, left)]
        spans += [(left, right)] * (left < right)
        spans += [(i, i + 1) for i in range(right, end)]
        starts += [start for start, _ in spans]
        words += [text[start:stop] for start, stop in spans]
    return Words(text, words, starts)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
