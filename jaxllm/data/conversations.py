"""Conversations to learn replies from: messages through a chat template, or prompts and replies."""

import itertools
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxllm.config.fields import DataConfig
from jaxllm.data.backend import Backend
from jaxllm.data.builder import text_fault
from jaxllm.data.holdout import parts_of
from jaxllm.data.hub import hub_source
from jaxllm.data.packing import Rows, ranges, slots, starts_of
from jaxllm.data.readers import file_source
from jaxllm.data.rows import Row, Source, text_hash
from jaxllm.errors import InputError
from jaxllm.runtime import processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A stretch of a conversation's text, and whether it is a reply."""

    text: str
    is_reply: bool


class FaultError(Exception):
    """Why a row is no conversation."""


@dataclass(frozen=True)
class Conversations:
    """n conversations as tokens, of which the model is asked for those of replies.

    Attributes:
        tokens: int32[total].
        asked: bool[total], tokens of replies, with what ends each.
        ends: bool[total], tokens that are no text.
        offsets: int64[n + 1]; conversation i is ``tokens[offsets[i]:offsets[i + 1]]``.
        hashes: uint64[n], `text_hash` of each.
        text_bytes: of all replies in UTF-8, as the template writes them.
        rows: int64[n], the number of each one's row.
    """

    tokens: np.ndarray
    asked: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    text_bytes: int
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def fingerprint(self) -> int:
        """A checksum of all of it."""
        arrays = (self.tokens, self.asked, self.offsets)
        return zlib.crc32(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))

    def at(self, epoch: int) -> "Conversations":
        """The examples of an epoch: all of them, in each."""
        return self

    @property
    def lengths(self) -> np.ndarray:
        """int64[n], tokens that the model sees: all but the last."""
        return np.diff(self.offsets) - 1

    @property
    def text_lengths(self) -> np.ndarray:
        """As `lengths`."""
        return self.lengths

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        """int64[k]: `lengths` of the conversations `members`."""
        return self.lengths[members]

    def slots(self, row_length: int, *, packing: bool) -> int:
        """Q, the conversations that a row holds at most."""
        return slots(row_length) if packing else 1

    @property
    def text_tokens(self) -> int:
        """Tokens of replies that are text."""
        return int(np.sum(self.asked & ~self.ends))

    @property
    def described(self) -> str:
        """What there is, for a report."""
        return f"{len(self)} conversations, {self.text_tokens} tokens of replies"

    def fill(
        self, rows: Rows, *, row_length: int, height: int, packing: bool
    ) -> dict[str, np.ndarray]:
        """The batch of `rows`, as `next_tokens.EpochExamples.fill` gives it."""
        lengths = self.lengths[rows.members]
        bounds = starts_of(lengths)
        at = ranges(self.offsets[rows.members], lengths, bounds)
        asked = self.asked[at + 1]
        return rows.spread(
            *(lengths, row_length, height),
            input_ids=self.tokens[at],
            labels=self.tokens[at + 1],
            label_weights=asked.astype(np.float32),
            text_weights=(asked & ~self.ends[at + 1]).astype(np.float32),
        )


def load_conversations(
    data: DataConfig, split: str, tokenizer: "PreTrainedTokenizerFast", *, chat: bool
) -> Conversations:
    """The conversations of ``split`` "train" or "dev", in memory.

    A conversation of more than ``data.max_length`` tokens loses whole turns: its last ones, or,
    with ``data.truncation: left``, the first ones behind a system message.

    Args:
        chat: `data.text` is a column of messages, else the prompt, and `data.text_pair` the reply.

    Raises:
        InputError: a file or column is not as it should be, a row that cannot be used where that
            stops the run, no conversation, or no chat template.
    """
    if chat and not tokenizer.chat_template:
        raise InputError(
            f"model.tokenizer: this tokenizer ({tokenizer.name_or_path or 'without a path'}) has "
            "no chat template, which writes messages as text; take another one, put its "
            "chat_template.jinja beside it, or give prompts and replies: lm.chat: false, data.text "
            "and data.text_pair"
        )
    turns = _Chat(tokenizer) if chat else _Prompt(tokenizer)
    data = data if not chat else replace(data, text_pair=None)
    if data.dataset is not None:
        sources = [hub_source(data, split, labelled=False)]
    else:
        files = data.files(split)
        if not files:
            raise InputError(f"data.{split} is empty; expected at least one file, or data.dataset")
        sources = [file_source(Path(file), data, labelled=False) for file in files]
    parts = parts_of([_rendered(source, turns) for source in sources], split, data, labelled=False)
    builder = _Builder(turns, data, Backend(tokenizer))
    for source in parts:
        rows = (row for row in source.rows() if not row.elsewhere)
        for row in itertools.islice(rows, data.limit(split)):
            builder.add(row, f"{source.name}: row {row.number}")
    dropped = "".join(f", {n} dropped: {why}" for why, n in builder.dropped.items())
    logger.info(
        "data.%s: %d conversations, %d tokens (%d lost turns for their length%s)",
        *(split, len(builder.hashes), len(builder.tokens), builder.shortened, dropped),
    )
    if not builder.hashes:
        names = ", ".join(source.name for source in parts)
        raise InputError(f"{names}: there is no conversation{dropped[:400]}")
    conversations = builder.conversations()
    processes.check_same(f"the conversations of data.{split}", lambda: conversations.fingerprint)
    return conversations


def _rendered(source: Source, turns: "_Chat | _Prompt") -> Source:
    """The rows with lists of texts, and in place of the label the turns that they are of."""

    def rows() -> Iterator[Row]:
        for row in source.rows():
            if row.fault is not None:
                yield row
                continue
            try:
                messages = turns.checked(row)
                parts = turns.parts(messages)
            except FaultError as fault:
                yield row._replace(text=None, pair=None, fault=str(fault))
            else:
                texts = [part.text for part in parts]
                yield row._replace(text=texts, pair=None, label=(messages, parts))

    return replace(source, rows=rows, fingerprint=lambda: f"{source.fingerprint()} {turns.name}")


@dataclass
class _Builder:
    """Collects the tokens of conversations."""

    turns: "_Chat | _Prompt"
    data: DataConfig
    backend: Backend
    tokens: list[int] = field(default_factory=list)
    asked: list[bool] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [0])
    hashes: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    text_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    shortened: int = 0

    def add(self, row: Row, where: str) -> None:
        """Raises InputError for a row that cannot be used, where that stops the run."""
        fault, drops = row.fault, self.data.on_bad_row == "drop"
        if fault is None:
            messages, parts = row.label
            fault = self._fitted(messages, parts)
            drops |= self.data.truncation == "drop"
        if fault is not None:
            if not drops:
                raise InputError(f"{where}: {fault}; correct it, or set data.on_bad_row: drop")
            self.dropped[fault] = self.dropped.get(fault, 0) + 1
            return
        self.offsets.append(len(self.tokens))
        self.hashes.append(text_hash(*row.text))
        self.numbers.append(row.number)

    def _fitted(self, messages: list[Any], parts: list[Part]) -> str | None:
        """Adds as many turns as fit in a row; why there are none, else."""
        data, room = self.data, self.data.max_length + 1  # the last token is only asked for
        shorter = iter([parts])
        if data.truncation in ("left", "right"):
            shorter = self.turns.shorter(messages, parts, left=data.truncation == "left")
        for kept in shorter:
            encodings = self.backend.encode_batch_fast([p.text for p in kept], specials=False)
            before, behind = self.turns.before, self.turns.behind
            if sum(map(len, encodings)) + len(before) + len(behind) > room:
                continue
            self._append(before, asked=False, end=True)
            for part, encoding in zip(kept, encodings, strict=True):
                self._append(encoding.ids, asked=part.is_reply, end=False)
                self.text_bytes += len(part.text.encode()) if part.is_reply else 0
            self._append(behind, asked=True, end=True)
            self.shortened += len(kept) < len(parts)
            return None
        return f"no turn of it fits in data.max_length={data.max_length} tokens"

    def _append(self, ids: Sequence[int], *, asked: bool, end: bool) -> None:
        self.tokens += ids
        self.asked += [asked] * len(ids)
        self.ends += [end] * len(ids)

    def conversations(self) -> Conversations:
        return Conversations(
            np.array(self.tokens, np.int32),
            np.array(self.asked, bool),
            np.array(self.ends, bool),
            np.array(self.offsets, np.int64),
            np.array(self.hashes, np.uint64),
            self.text_bytes,
            np.array(self.numbers, np.int64),
        )


class _Prompt:
    """A prompt and its reply, as `generate` would write it: behind what the tokenizer puts in front
    of a text, and up to the end of the text.
    """

    name = "prompt"

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        mask = tokenizer("a", return_special_tokens_mask=True)
        pairs = zip(mask["input_ids"], mask["special_tokens_mask"], strict=True)
        self.before = [number for number, _ in itertools.takewhile(lambda pair: pair[1], pairs)]
        self.behind = [tokenizer.eos_token_id]

    def checked(self, row: Row) -> list[Any]:
        """The prompt and the reply."""
        for name, text in (("prompt", row.text), ("reply", row.pair)):
            if fault := text_fault(text, name):
                raise FaultError(fault)
        return [row.text, row.pair]

    def parts(self, messages: list[Any]) -> list[Part]:
        """Of one turn."""
        prompt, reply = messages
        return [Part(prompt, False), Part(reply, True)]

    def shorter(self, messages: list[Any], parts: list[Part], left: bool) -> Iterator[list[Part]]:
        """All of it, as there is but one turn."""
        yield parts


class _Chat:
    """Messages as a tokenizer's chat template writes them; what it writes for an assistant, behind
    the prompt to reply, is the reply.
    """

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._tokenizer = tokenizer
        template = repr(tokenizer.chat_template).encode()
        self.name = f"chat {zlib.crc32(template):08x}"

    def checked(self, row: Row) -> list[Any]:
        """The messages up to the last reply."""
        messages = row.text
        if not isinstance(messages, list):
            found = "nothing" if messages is None else repr(messages)[:40]
            raise FaultError(f"found {found}, expected a list of messages with role and content")
        for number, message in enumerate(messages, 1):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                found = repr(message)[:40]
                raise FaultError(f"message {number}: found {found}, expected role and content")
            content, role = message.get("content"), message["role"]
            may_be_empty = content == "" and role != "assistant"
            if not may_be_empty and (fault := text_fault(content, "content")):
                raise FaultError(f"message {number}, of {role}: {fault}")
        replies = _replies(messages)
        if not replies:
            raise FaultError(
                "no message behind the first is of the role assistant, so there is no "
                "reply to learn"
            )
        return messages[: replies[-1] + 1]

    def parts(self, messages: list[Any]) -> list[Part]:
        """What is before each reply, and the reply."""
        whole, parts, end = self._written(messages), [], 0
        for i in _replies(messages):
            before = self._written(messages[:i], prompt=True)
            reply = self._written(messages[: i + 1])
            same = whole.startswith(before) and whole.startswith(reply)
            if not same or not end <= len(before) < len(reply):
                raise FaultError(
                    f"the chat template writes message {i + 1} another way where it is to be "
                    "replied to, or where others follow, so the reply cannot be told apart"
                )
            parts.append(Part(whole[end : len(before)], False))
            parts.append(Part(whole[len(before) : len(reply)], True))
            end = len(reply)
        return parts

    def shorter(self, messages: list[Any], parts: list[Part], left: bool) -> Iterator[list[Part]]:
        """All of it, then without one turn more each time."""
        yield parts
        replies = _replies(messages)
        system = [m for m in messages[:1] if m["role"] == "system"]
        for count in range(1, len(replies)):
            if left:
                yield self.parts([*system, *messages[replies[count - 1] + 1 :]])
            else:
                yield self.parts(messages[: replies[-count - 1] + 1])

    def _written(self, messages: list[Any], *, prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template runs whatever its author wrote
            found = f"{type(error).__name__}: {str(error)[:200]}"
            raise FaultError(f"the chat template refuses the messages ({found})") from None
        return str(text)


def _replies(messages: list[Any]) -> list[int]:
    """The places of replies; what an assistant says first of all answers nothing."""
    return [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
