"""Texts that end a continuation, found in tokens: an automaton over bytes, a table over tokens."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PREFIX = "abcdef"  # what a token is spelled behind: at the beginning spaces may be lost


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StopStrings:
    """Which rows end in a token that completes one of some strings, as transformers finds them: the
    string may end inside of the last token, and begin in the prompt.

    next_AV: int16, for each state of the automaton of Aho and Corasick (1975) and each token
        2 x the state behind the token, + 1 where a string ended within it.
    window: tokens that a string can be spread over: its bytes.
    """

    next_AV: jax.Array
    window: int = field(metadata={"static": True})

    @classmethod
    def of(cls, strings: Sequence[str], tokenizer: Any, vocabulary: int) -> "StopStrings":
        """The table of some strings; a token that the tokenizer lacks is in no string."""
        patterns = [text.encode() for text in strings]
        step_Ab, accepts_A = _automaton(patterns)
        spelled = _spelled(tokenizer, vocabulary)
        order = sorted(range(vocabulary), key=lambda i: -len(spelled[i] or b""))
        A = len(accepts_A)
        state_AV = np.repeat(np.arange(A, dtype=np.int16)[:, None], vocabulary, 1)
        hit_AV = np.zeros((A, vocabulary), bool)
        longest = len(spelled[order[0]] or b"")
        counts = np.bincount([len(text or b"") for text in spelled], minlength=longest + 1)
        active = vocabulary - np.cumsum(counts)  # tokens of more than i bytes
        for i in range(longest):
            tokens = np.array(order[: active[i]])
            byte_V = np.array([spelled[token][i] for token in tokens])
            state_AV[:, tokens] = step_Ab[state_AV[:, tokens], byte_V[None]]
            hit_AV[:, tokens] |= accepts_A[state_AV[:, tokens]]
        state_AV[:, [i for i, text in enumerate(spelled) if text is None]] = 0
        return cls(jnp.asarray((2 * state_AV + hit_AV).astype(np.int16)), max(map(len, patterns)))

    def __call__(self, ids_RS: jax.Array, length: jax.Array) -> jax.Array:
        """bool [R]: whether the last of the first `length` tokens of ids_RS completes a string."""
        found_R = jnp.zeros(len(ids_RS), jnp.int32)
        for back in range(min(self.window, ids_RS.shape[1]), 0, -1):
            token_R = jax.lax.dynamic_index_in_dim(
                ids_RS, jnp.maximum(length - back, 0), 1, keepdims=False
            )
            next_R = self.next_AV[found_R // 2, token_R].astype(jnp.int32)
            found_R = jnp.where(length >= back, next_R, found_R)
        return found_R % 2 == 1


def _automaton(patterns: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(state behind a state and a byte [A, 256], states in which a pattern has ended [A])."""
    children: list[dict[int, int]] = [{}]
    accepts = [False]
    for pattern in patterns:
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                accepts.append(False)
            state = children[state][byte]
        accepts[state] = True
    step_Ab = np.zeros((len(children), 256), np.int16)
    fallback = [0] * len(children)
    queue = [0]
    for state in queue:  # by depth: the state that it falls back to is complete
        if state:
            step_Ab[state] = step_Ab[fallback[state]]
            accepts[state] |= accepts[fallback[state]]
        for byte, child in children[state].items():
            fallback[child] = int(step_Ab[state, byte]) if state else 0
            step_Ab[state, byte] = child
            queue.append(child)
    return step_Ab, np.array(accepts)


def _spelled(tokenizer: Any, vocabulary: int) -> list[bytes | None]:
    """What each token adds to a text, in bytes; None for one that the tokenizer lacks.

    Tokens of byte-level vocabularies may be parts of a character.
    """
    kind = _byte_kind(tokenizer)
    byte_of = _byte_level() if kind == "ByteLevel" else {}
    base = tokenizer.convert_ids_to_tokens(
        tokenizer(_PREFIX, add_special_tokens=False)["input_ids"]
    )
    spelled: list[bytes | None] = [None] * vocabulary
    for token, i in tokenizer.get_vocab().items():
        if i >= vocabulary:
            continue
        if kind == "ByteLevel" and all(char in byte_of for char in token):
            spelled[i] = bytes(byte_of[char] for char in token)
        elif kind == "ByteFallback" and _is_byte(token):
            spelled[i] = bytes([int(token[3:5], 16)])
        else:
            text = tokenizer.convert_tokens_to_string([*base, token])
            spelled[i] = text[text.index(_PREFIX) + len(_PREFIX) :].encode(errors="replace")
    return spelled


def _is_byte(token: str) -> bool:
    digits = "0123456789abcdefABCDEF"
    return (
        len(token) == 6
        and token[:3] == "<0x"
        and token[5] == ">"
        and all(digit in digits for digit in token[3:5])
    )


def _byte_kind(tokenizer: Any) -> str | None:
    """How the tokenizer's decoder spells bytes."""
    decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    return next((kind for kind in ("ByteFallback", "ByteLevel") if f'"{kind}"' in decoder), None)


def _byte_level() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's vocabulary, as its encoder.py has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
