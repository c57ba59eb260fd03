"""`jaxllm generate`: prompts of a command line or of JSON lines, and what follows them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxllm.errors import InputError
from jaxllm.generation.generate import check
from jaxllm.prediction import predict
from jaxllm.prediction.batched import BatchSizes, Predictor
from jaxllm.prediction.causal_lm import Continuer
from jaxllm.prediction.inputs import RowError
from jaxllm.prediction.loaded import Kind, LoadedModel
from jaxllm.prediction.saved import SavedModel


@dataclass(frozen=True)
class _Writes:
    """A task as `jaxllm generate` takes it."""

    head: str
    predictor: Callable[[SavedModel, BatchSizes], Predictor]


def kinds_that_write(kinds: Mapping[str, Kind], options: Mapping[str, Any]) -> dict[str, _Writes]:
    """The tasks of `kinds`, of which a causal language model continues texts as `options` say and
    every other one is refused.
    """
    continuer = partial(Continuer.of, given=options)
    return {
        name: _Writes(kind.head, continuer if name == "causal-lm" else _refuse)
        for name, kind in kinds.items()
    }


def _refuse(model: SavedModel, batch_sizes: BatchSizes) -> Predictor:
    raise InputError(
        f"{model.directory}: a model of {model.form.task}, which writes nothing; expected one "
        "whose config.json names a class …ForCausalLM or GPT2LMHeadModel, or use jaxllm predict"
    )


def generate_lines(
    model: str,
    input: str,
    output: str,
    batch_size: int,
    options: Mapping[str, Any],
    kinds: Mapping[str, Kind],
) -> dict[str, int]:
    """Continues every line of `input` in one line of `output`, see `predict.predict`."""
    writes = kinds_that_write(kinds, options)
    return predict.predict(model, input, output, batch_size, kinds=writes)


def generate_texts(
    model: str,
    prompts: Sequence[str],
    options: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    *,
    stream: bool = False,
) -> None:
    """Prints each prompt with what follows it; with `stream` piece by piece, as it is written.

    Raises:
        InputError: a prompt that cannot be continued, no such model, options that cannot be met.
    """
    if stream and (len(prompts) > 1 or options.get("num_beams", 1) != 1):
        raise InputError("--stream: expected one --prompt and num_beams=1; leave --stream out")
    writes = kinds_that_write(kinds, options)
    predictor = LoadedModel.load(model, len(prompts), writes, key="--prompt").predictor
    assert isinstance(predictor, Continuer)
    if stream:
        _stream(predictor, prompts[0])
        return
    for prompt, answer in zip(prompts, predictor.answers(prompts, 1), strict=True):
        if "error" in answer:
            raise InputError(f"--prompt {prompt!r:.80}: {answer['error']}")
        for text in answer.get("texts") or [answer["text"]]:
            _write(f"{prompt}{text}\n")


def _stream(continuer: Continuer, prompt: str) -> None:
    (one,) = continuer.encode([_checked(continuer, prompt)])
    if isinstance(one, RowError):
        raise InputError(f"--prompt {prompt!r:.80}: {one}")
    _write(prompt)
    shown = TextStream(continuer, _write)
    _, faults_R = continuer.write(continuer.prompts([one.asked]), streamer=shown)
    _write("\n")
    check(faults_R)


def _checked(continuer: Continuer, prompt: str) -> str:
    try:
        return continuer.parse(prompt)
    except RowError as error:
        raise InputError(f"--prompt {prompt!r:.80}: {error}") from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class TextStream:
    """Prints what a model writes as it comes: a streamer, see `generation.generate`.

    write: prints a piece of text.
    """

    def __init__(self, continuer: Continuer, write: Any):
        self._continuer, self._write = continuer, write
        self._prompt: list[int] | None = None
        self._new: list[int] = []
        self._shown = 0

    def put(self, tokens: np.ndarray) -> None:
        if self._prompt is None:
            self._prompt = tokens[0].tolist()
            return
        self._new += tokens.tolist()
        text = self._continuer.spelled(self._prompt, np.array(self._new))
        if not text.endswith("\ufffd"):  # of a character whose other bytes are to come
            self._show(text)

    def end(self) -> None:
        self._show(self._continuer.spelled(self._prompt or [], np.array(self._new)))

    def _show(self, text: str) -> None:
        self._write(text[self._shown :])
        self._shown = max(self._shown, len(text))
