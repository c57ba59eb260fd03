"""EleutherAI's evaluation harness (lm-evaluation-harness) on a model of jaxllm:

    python -m benchmarks.lm_eval_adapter --model jaxllm --model_args pretrained=DIR --tasks NAME \\
        --include_path DIRECTORY_WITH_TASK_FILES

All options are those of `lm_eval`; model_args takes pretrained, max_length and dtype.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jaxllm
from jaxllm.errors import InputError
from jaxllm.prediction.likelihood import windows

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError as error:
    missing = (error.name or "lm_eval").partition(".")[0]
    raise ImportError(
        f"{missing} is not installed, which this adapter needs: pip install -e '.[bench]'"
    ) from None

MAX_TOKENS = 256  # that the harness writes where a task does not say how many
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class JaxLM(LM):
    """A causal language model. Scores equal those of the harness's own model `hf`."""

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 8,
        max_length: int | None = None,
        dtype: str = "float32",
        **ignored: Any,
    ):
        """`pretrained`: what `from_pretrained` takes. `ignored`: max_batch_size and device, which
        the harness hands to every model.
        """
        super().__init__()
        if unknown := set(ignored) - {"max_batch_size", "device"}:
            raise InputError(
                f"model_args: found {', '.join(sorted(unknown))}, expected pretrained, max_length, "
                "dtype"
            )
        if not str(batch_size).isdecimal():
            raise InputError(f"batch_size: found {batch_size!r}, expected a number")
        self.model = jaxllm.AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype)
        self.judge = self.model.judge(
            max_length=None if max_length is None else int(max_length), batch_size=int(batch_size)
        )

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the log-probability, and whether it is greedy."""
        found = self.judge.loglikelihood([request.args for request in requests])
        return [(x.log_probability, x.is_greedy) for x in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """Of each text the log-probability. As in `hf`, a token that the tokenizer puts before a
        text counts, too, which `Judge.loglikelihood_rolling` leaves out.
        """
        rows, length = self.judge.rows, self.judge.rows.max_length
        cut = [
            windows(rows.opened(text), rows.prefix, length, length)
            for (text,) in (request.args for request in requests)
        ]
        found = iter(self.judge.judged([row for own in cut for row in own]))
        return [math.fsum(next(found).log_probability for _ in own) for own in cut]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Of each (context, options) what the model writes until one of options["until"]."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        result: dict[int, str] = {}
        for members in groups.values():
            options = requests[members[0]].args[1]
            ids = {i: self.judge.rows.opened(requests[i].args[0]) for i in members}
            members.sort(key=lambda i, ids=ids: len(ids[i]))  # rows of a batch are alike
            for start in range(0, len(members), self.judge.batch_size):
                own = members[start : start + self.judge.batch_size]
                result |= zip(own, self._written([ids[i] for i in own], options), strict=True)
        return [result[i] for i in range(len(requests))]

    def _written(self, contexts: list[list[int]], options: dict[str, Any]) -> list[str]:
        options = dict(options)
        tokenizer, longest = self.judge.rows.tokenizer, self.judge.rows.max_length
        limits = [value for name in _LIMITS if (value := options.pop(name, None)) is not None]
        new = int(limits[0]) if limits else MAX_TOKENS
        if new >= longest:
            raise InputError(
                f"max_gen_toks: found {new}, expected less than the {longest} tokens that the "
                "model has room for"
            )
        until = options.pop("until", None) or []
        until = [text for text in ([until] if isinstance(until, str) else until) if text]
        if not options.get("do_sample") and options.get("temperature") is not None:
            del options["temperature"]  # the harness says 0 for greedy decoding
        full = contexts + contexts[-1:] * (self.judge.batch_size - len(contexts))  # one shape
        prompts = [(ids or [self.judge.rows.prefix])[-(longest - new) :] for ids in full]
        rows = self.model.generate(
            prompts,
            max_new_tokens=new,
            stop_strings=until or None,
            tokenizer=tokenizer,
            **options,
        )
        width = max(map(len, prompts))
        return [self._text(row[width:].tolist(), until) for row in rows[: len(contexts)]]

    def _text(self, tokens: list[int], until: Iterable[str]) -> str:
        """What stands before the end of the text and before any stop string."""
        tokenizer = self.judge.rows.tokenizer
        if tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in until:
            text = text.split(stop)[0]
        return text


def main() -> int:
    """Runs the harness's own command line with the model `jaxllm`. Exit status: 0, 2 for a user's
    mistake.
    """
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model("jaxllm")(JaxLM)
    try:
        cli_evaluate()
    except InputError as error:
        print(f"benchmarks.lm_eval_adapter: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
