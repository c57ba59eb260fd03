"""`jaxllm chat`: a conversation in turns on a terminal."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np

from jaxllm.errors import InputError
from jaxllm.generation.conversation import Conversation
from jaxllm.prediction.causal_lm import Continuer
from jaxllm.prediction.generate import TextStream, kinds_that_write
from jaxllm.prediction.loaded import Kind, LoadedModel

REPLY_TOKENS = 256  # of a reply, where nobody says how many


def chat(
    model: str,
    options: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    *,
    system: str | None = None,
    lines: TextIO | None = None,
) -> None:
    """Answers each line of `lines`, by default standard input, until it ends.

    system: what the conversation begins with.

    Raises:
        InputError: no such model, a tokenizer without a chat template or with one that raises, a
            conversation longer than the model's positions.
    """
    given = dict(options)
    if "max_length" not in given:
        given.setdefault("max_new_tokens", REPLY_TOKENS)
    writes = kinds_that_write(kinds, given)
    continuer = LoadedModel.load(model, 1, writes, key="--model").predictor
    assert isinstance(continuer, Continuer)
    lines = sys.stdin if lines is None else lines
    talk = Conversation(continuer.writer, continuer.options, continuer.stops)
    messages = [] if system is None else [{"role": "system", "content": system}]
    asks = "> " if lines.isatty() else ""
    turn = 0
    while True:
        _write(asks)
        line = lines.readline()
        if not line:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.strip()})
        ids = template_ids(continuer, messages)
        shown = TextStream(continuer, _write)
        shown.put(np.array([ids]))
        new: list[int] = []
        with jax.set_mesh(continuer.saved.mesh):
            for tokens in talk.reply(ids, turn):
                new += tokens
                for token in tokens:
                    shown.put(np.array([token]))
        shown.end()
        _write("\n")
        messages.append({"role": "assistant", "content": continuer.spelled(ids, np.array(new))})
        turn += 1


def template_ids(continuer: Continuer, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a conversation that the model has the word in."""
    tokenizer, directory = continuer.saved.tokenizer, continuer.saved.directory
    if not tokenizer.chat_template:
        raise InputError(
            f"{directory}: the tokenizer has no chat template, which says how turns are written; "
            "expected chat_template.jinja, or use jaxllm generate"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # the template's own, or of Jinja
        raise InputError(
            f"{directory}: the chat template refuses the conversation: "
            f"{' '.join(str(error).split()):.300}; expected one that takes turns of "
            f"{', '.join(dict.fromkeys(x['role'] for x in messages))}"
        ) from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
