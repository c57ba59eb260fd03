"""The tokenizer of the `tokenizers` library, which does the work of one of transformers."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.files import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Backend:
    """A copy that neither pads nor truncates: the caller's may, and others may change that.

    words: texts will come as words, each spelled as behind a space, also the first one
        (transformers' `add_prefix_space`, which byte-level tokenizers need for words).

    Raises:
        InputError: from all methods, whatever the library raises: it raises plain Exceptions and,
            in Rust, panics where its file is damaged.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", *, words: bool = False):
        from tokenizers import Tokenizer

        self._path = Path(tokenizer.name_or_path)
        with self._told():
            description = tokenizer.backend_tokenizer.to_str()
            self._library = Tokenizer.from_str(_prefixed(description) if words else description)
            self._library.no_truncation()
            self._library.no_padding()

    def _told(self) -> AbstractContextManager[None]:
        return reading(self._path, "a tokenizer that can spell any text", "download it again")

    def encode(self, text: str, pair: str) -> Any:
        """The encoding of two texts."""
        with self._told():
            return self._library.encode(text, pair)

    def encode_batch(
        self, texts: Sequence[Any], *, words: bool = False, specials: bool = True
    ) -> list[Any]:
        """An encoding for each text, pair of texts, or list of `words`, with places in the text."""
        with self._told():
            return self._library.encode_batch(
                texts, is_pretokenized=words, add_special_tokens=specials
            )

    def encode_batch_fast(self, texts: Sequence[Any], *, specials: bool = True) -> list[Any]:
        """As `encode_batch`, without places in the text."""
        with self._told():
            return self._library.encode_batch_fast(texts, add_special_tokens=specials)

    def specials(self, *, pair: bool) -> int:
        """Special tokens around a text or a pair."""
        return self._library.num_special_tokens_to_add(is_pair=pair)

    @property
    def description(self) -> str:
        """All of the tokenizer, as in a tokenizer.json."""
        return self._library.to_str()

    def fingerprint(self) -> str:
        """Another string for every tokenizer that can give other tokens."""
        from tokenizers import __version__

        return json.dumps([__version__, json.loads(self.description)], sort_keys=True)


def _prefixed(description: str) -> str:
    content = json.loads(description)
    splitter = content["pre_tokenizer"] or {}
    for part in splitter.get("pretokenizers", [splitter]):
        if "add_prefix_space" in part:
            part["add_prefix_space"] = True
    return json.dumps(content)
