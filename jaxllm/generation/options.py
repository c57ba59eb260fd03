"""How to generate: options under transformers' names, their defaults and what they may be."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import index
from typing import Any

from jaxllm.errors import InputError
from jaxllm.names.attributes import nearest

# What transformers generates where neither the caller nor a file says how long.
DEFAULT_NEW_TOKENS = 20

# Options of transformers that would change the result and are not implemented, and the values that
# are without effect, beside None.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "cache_implementation": ("static", "dynamic", "hybrid"),  # how, not what
    "constraints": (),
    "custom_generate": (),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "logits_processor": (),
    "max_time": (),
    "num_beam_groups": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "penalty_alpha": (),
    "prefix_allowed_tokens_fn": (),
    "prompt_lookup_num_tokens": (),
    "remove_invalid_values": (False,),
    "sequence_bias": (),
    "stopping_criteria": (),
    "token_healing": (False,),
    "top_h": (),
    "use_cache": (True, False),
    "watermarking_config": (),
}
_INSTEAD = {
    "attention_mask": "give it as an argument of its own",
    "constraints": "the form of beam search that transformers has removed, too",
    "diversity_penalty": "transformers has moved diverse groups of beams out of the library, too",
    "num_beam_groups": "transformers has moved diverse groups of beams out of the library, too",
    "generation_config": "give its settings by name: **generation_config.to_diff_dict()",
    "remove_invalid_values": "leave it out: a NaN among the logits is an error of its row",
    "inputs": "give the prompt as input_ids",
    "inputs_embeds": "give the prompt as input_ids",
}
# Of sampling and of beams: with another kind of generation they say nothing, so that a caller who
# gives one is told. A file may keep them for those who sample.
OF_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
)
_OF_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True)
class Options:
    """What `generate` is asked for; names and meanings are those of transformers.

    Attributes:
        max_new_tokens: tokens behind the prompt, at most.
        max_length: of prompt and continuation, at most; max_new_tokens counts where both are given.
            Where neither is said: 20 new tokens, as far as the model has positions.
        min_length: of prompt and continuation; until then no EOS.
        min_new_tokens: the same, of the continuation.
        do_sample: draw tokens, instead of taking the most probable one.
        temperature: divides the logits.
        top_k: draw from the k most probable tokens; 0: from all.
        top_p: draw from the most probable tokens that together have this probability.
        min_p: draw from tokens of at least this probability, in parts of the greatest one.
        typical_p: draw from the tokens whose information is nearest to its expectation and that
            together have this probability.
        epsilon_cutoff: draw from tokens above this probability.
        eta_cutoff: the same, with a probability that depends on the entropy.
        seed: of the draws: a row's depend on the seed and its number in the batch, on nothing else.
        repetition_penalty: divides the positive logits of tokens that were there, multiplies the
            negative ones.
        no_repeat_ngram_size: no n tokens in a row stand twice; 0: they may.
        bad_words_ids: token sequences that are not written.
        suppress_tokens: tokens that are not written.
        begin_suppress_tokens: tokens that are not written as the first.
        forced_bos_token_id: the token behind a prompt of one token.
        forced_eos_token_id: the last token, where max_length is reached.
        renormalize_logits: scores are log-probabilities after all changes.
        num_beams: hypotheses of beam search; 1: none.
        length_penalty: of beam search: the power of its length that a hypothesis' score is divided
            by; above 0 longer ones win.
        early_stopping: of beam search: stop at as many finished hypotheses as beams; false: where
            better ones are unlikely; never: where there can be none.
        num_return_sequences: continuations of each prompt.
        eos_token_id: tokens that end a continuation.
        pad_token_id: what stands behind a continuation that has ended, else the first EOS; and, in
            a prompt without a mask, what is no token.
        bos_token_id: what a text begins with.
        stop_strings: texts that end a continuation; they take the `tokenizer`.
        return_dict_in_generate: an output with names instead of the sequences alone.
        output_scores: keep the scores that tokens were chosen by.
        output_logits: keep the model's own.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    renormalize_logits: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    stop_strings: tuple[str, ...] = ()
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False

    @property
    def fill_id(self) -> int | None:
        """What stands behind the end of a row; None where no token ends one."""
        if not self.eos_token_id:
            return None
        return self.eos_token_id[0] if self.pad_token_id is None else self.pad_token_id


NAMES = tuple(field.name for field in fields(Options))
_FALLBACK = {field.name: field.default for field in fields(Options)}
_NONE = _FALLBACK | {"top_k": 0}  # a caller's None: without this

_Kind = tuple[Callable[[Any], bool], str]
_IDS = (*("suppress_tokens", "begin_suppress_tokens"), "eos_token_id", "forced_eos_token_id")
_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "num_beams", "num_return_sequences"),
        (lambda x: x >= 1, "at least 1"),
    ),
    **dict.fromkeys(
        ("min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k", "seed"),
        (lambda x: x >= 0, "at least 0"),
    ),
    **dict.fromkeys(("temperature", "repetition_penalty"), (lambda x: x > 0, "a number above 0")),
    **dict.fromkeys(("top_p", "typical_p"), (lambda x: 0 < x <= 1, "above 0 and at most 1")),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    **dict.fromkeys(
        ("epsilon_cutoff", "eta_cutoff"), (lambda x: 0 <= x < 1, "at least 0 and below 1")
    ),
}
_WHOLE = (
    *("max_new_tokens", "max_length", "min_length", "min_new_tokens", "top_k", "seed"),
    *("no_repeat_ngram_size", "num_beams", "num_return_sequences"),
    *("forced_bos_token_id", "pad_token_id", "bos_token_id"),
)
_TOKENS = ("forced_bos_token_id", "pad_token_id", "bos_token_id")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_FLAGS = (
    *("do_sample", "renormalize_logits", "return_dict_in_generate"),
    *("output_scores", "output_logits"),
)


def options_of(
    given: Mapping[str, Any], defaults: Mapping[str, Any], where: str, vocabulary: int
) -> Options:
    """What a caller asks for, over what a model's files say.

    `defaults`: the content of generation_config.json or, without one, of config.json; `where`:
    what messages call it. A caller's None takes a default away, a file's null says nothing.
    `vocabulary`: how many tokens the model has.

    Raises:
        InputError: a name that is none, a value out of its range, values that contradict.
    """
    for name in given:
        if name not in _FALLBACK and name not in _REFUSED:
            hint = _INSTEAD.get(name)
            raise InputError(
                f"{name}=: {hint}"
                if hint
                else f"{name}=: no option of generate; expected {', '.join(NAMES)}"
                f"{nearest(name, NAMES)}"
            )
    for source, content in ((None, given), (where, defaults)):
        for name, harmless in _REFUSED.items():
            value = content.get(name)
            if value is not None and not any(value is x or value == x for x in harmless):
                hint = _INSTEAD.get(name, "leave it out")
                raise InputError(
                    f"{_place(name, source)}: found {_shown(value)}, which is not implemented; "
                    f"{hint}"
                )
    values: dict[str, Any] = {}
    for name, fallback in _FALLBACK.items():
        if name in given:
            value, source = given[name], None
            value = _NONE[name] if value is None else value
        else:
            value, source = defaults.get(name), where
            if name in _SPECIAL:
                value = _known(value, vocabulary)
            value = fallback if value is None else value
        values[name] = _checked(name, value, source, vocabulary)
    options = Options(**values)
    if options.num_beams > vocabulary:
        raise InputError(
            f"{'num_beams' if 'num_beams' in given else _place('num_beams', where)}: found "
            f"{options.num_beams}, expected at most the {vocabulary} tokens of the vocabulary, of "
            "which the first ones of all beams are different"
        )
    _check_together(options, given)
    return options


def _known(value: Any, vocabulary: int) -> Any:
    """Special tokens of a file without those that the model lacks, as the defaults of transformers'
    config classes name them for a small vocabulary: they never occur.
    """
    several = value if isinstance(value, list) else [value]
    kept = [x for x in several if not isinstance(x, int) or 0 <= x < vocabulary]
    return kept if isinstance(value, list) else next(iter(kept), None)


def _place(name: str, source: str | None) -> str:
    return name if source is None else f"{source}: {name}"


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def _checked(name: str, value: Any, source: str | None, vocabulary: int) -> Any:
    """`value` in the type of its field."""

    def refuse(expected: str) -> InputError:
        more = "; for greedy decoding give do_sample=False" if name == "temperature" else ""
        return InputError(
            f"{_place(name, source)}: found {_shown(value)}, expected {expected}{more}"
        )

    if name in _FLAGS:
        if not isinstance(value, bool):
            raise refuse("True or False")
        return value
    if name == "early_stopping":
        if not isinstance(value, bool) and value != "never":
            raise refuse("True, False or 'never'")
        return value
    if name == "stop_strings":
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(
            isinstance(text, str) and text for text in texts
        ):
            raise refuse("texts of at least one character")
        return tuple(texts)
    if name in _IDS:
        several = value if isinstance(value, list | tuple) or _is_array(value) else [value]
        return tuple(_token(x, vocabulary, refuse) for x in several)
    if name == "bad_words_ids":
        if not isinstance(value, list | tuple) or not all(
            isinstance(word, list | tuple) and word for word in value
        ):
            raise refuse("a list of lists of token ids")
        return tuple(tuple(_token(x, vocabulary, refuse) for x in word) for word in value)
    if value is None:
        return None
    if name in _WHOLE:
        value = _whole(value, refuse)
        if name in _TOKENS and not 0 <= value < vocabulary:
            raise refuse(f"a token id, 0 to {vocabulary - 1}")
    elif name == "length_penalty" or name in _KINDS:
        if isinstance(value, bool) or not _is_number(value):
            raise refuse(_KINDS[name][1] if name in _KINDS else "a number")
        value = float(value)
    fits, expected = _KINDS.get(name, (lambda x: True, ""))
    if not fits(value):
        raise refuse(expected)
    return value


def _is_array(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 1


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, str)
    except (TypeError, ValueError, OverflowError):
        return False


def _whole(value: Any, refuse: Callable[[str], InputError]) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise refuse("a whole number") from None


def _token(value: Any, vocabulary: int, refuse: Callable[[str], InputError]) -> int:
    token = _whole(value, lambda _: refuse(f"token ids, 0 to {vocabulary - 1}"))
    if not 0 <= token < vocabulary:
        raise refuse(f"token ids, 0 to {vocabulary - 1}")
    return token


def _check_together(options: Options, given: Mapping[str, Any]) -> None:
    """Refuses what a caller gives and another value makes void, and what nothing can meet."""

    def is_given(name: str) -> bool:
        return given.get(name) is not None and getattr(options, name) != _NONE[name]

    if not options.do_sample:
        for name in filter(is_given, OF_SAMPLING):
            raise InputError(
                f"{name}: found {_shown(given[name])} with do_sample=False, where it has no "
                f"effect; give do_sample=True, or leave {name} out"
            )
    if options.num_beams == 1:
        for name in filter(is_given, _OF_BEAMS):
            raise InputError(
                f"{name}: found {_shown(given[name])} with num_beams=1, where it has no effect; "
                f"give num_beams, 2 or more, or leave {name} out"
            )
        if options.num_return_sequences > 1 and not options.do_sample:
            raise InputError(
                f"num_return_sequences: found {options.num_return_sequences}, expected 1: without "
                "do_sample=True or num_beams there is one continuation"
            )
    elif options.num_return_sequences > options.num_beams:
        raise InputError(
            f"num_return_sequences: found {options.num_return_sequences}, expected at most "
            f"num_beams={options.num_beams}"
        )
    if not options.return_dict_in_generate:
        for name in ("output_scores", "output_logits"):
            if is_given(name):
                raise InputError(
                    f"{name}: found True, expected return_dict_in_generate=True beside it"
                )
    suppressed = set(options.suppress_tokens)
    forced_bos = () if options.forced_bos_token_id is None else (options.forced_bos_token_id,)
    for name, forced in (
        ("forced_bos_token_id", forced_bos),
        ("forced_eos_token_id", options.forced_eos_token_id),
    ):
        if forced and suppressed.issuperset(forced):
            raise InputError(
                f"{name}: found {sorted(forced)}, which suppress_tokens forbids; leave one out"
            )
