"""`jaxllm train-tokenizer`: a vocabulary out of a corpus, with the `tokenizers` library.

What is written loads in jaxllm and in transformers, and is normalised, split and framed as that of
the models which made each kind known: BERT (wordpiece), RoBERTa (bpe), XLM-RoBERTa (unigram) and
GPT-2 (gpt2). Of the latter, and of a token a character, the tokens spell the text as it is.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jaxllm.config.fields import DataConfig
from jaxllm.data.builder import text_fault
from jaxllm.data.pieces import pieces_of
from jaxllm.data.readers import document_source
from jaxllm.data.rows import Source
from jaxllm.data.stdlib import stdlib_source
from jaxllm.errors import InputError
from jaxllm.pretrained import saving

logger = logging.getLogger(__name__)

KINDS = ("wordpiece", "bpe", "unigram", "gpt2", "character")
VERBATIM = ("gpt2", "character")  # these keep line ends, capitals and spaces, and frame nothing

_BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_END = "<|endoftext|>"
_SPECIAL = {
    "wordpiece": _BERT,
    "bpe": _ROBERTA,
    "unigram": _ROBERTA,
    "gpt2": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "character": {"bos_token": _END, "eos_token": _END, "unk_token": "<|unknown|>"},
}


def train_tokenizer(
    files: list[str],
    output: str,
    *,
    kind: str,
    vocab_size: int,
    cased: bool = False,
    text: str = "text",
    corpus: str | None = None,
) -> None:
    """Trains on the text of `files` and writes the new directory `output`.

    Args:
        files: text, jsonl, csv or tsv, each also .gz; of the latter three the column `text`.
        corpus: in their place, see `DataConfig`.
        output: directory to write.
        kind: one of KINDS.
        vocab_size: entries, special tokens and single characters included; of characters the most
            frequent, and no more than the text has.
        cased: keep capitals and accents, as `VERBATIM` kinds always do. Chinese characters are
            words of their own in wordpiece.
        text: see `files`.

    Raises:
        InputError: a file that cannot be read, no text, a vocabulary that does not hold the
            characters of the text, or a directory that is not empty.
    """
    try:
        output.encode()
    except UnicodeEncodeError:
        expected = "expected a name in UTF-8, as the tokenizers library writes no other"
        raise InputError(f"--output: found {output!r}, {expected}") from None
    documents: Literal["blank_line", "line"] = "blank_line" if kind in VERBATIM else "line"
    data = DataConfig(train=files, documents=documents, text=text, on_bad_row="drop")
    # What is wrong with a file is told before the long work begins.
    sources = [document_source(Path(file), data) for file in files]
    if corpus is not None:
        sources.append(stdlib_source(data))
    backend, trainer, special = _parts(kind, vocab_size, cased)
    backend.train_from_iterator(_texts(sources, kind in VERBATIM), trainer)
    size = backend.get_vocab_size()
    if size > vocab_size:
        raise InputError(
            f"--vocab_size: found {vocab_size}, but the special tokens and the characters of the "
            f"text alone are {size}; expected more"
        )
    if size == len(set(special.values())):
        names = ", ".join(source.name for source in sources)
        raise InputError(f"{names}: there is no text to learn from")
    tokenizer = _framed(backend, special, kind)
    saving.write_directory(
        Path(output),
        lambda directory: saving.write_tokenizer(directory, tokenizer),
        replace=False,
    )
    case = "cased" if cased or kind in VERBATIM else "uncased"
    logger.info("%s: %d entries, %s, %s", output, size, kind, case)


def _texts(sources: list[Source], verbatim: bool) -> Iterator[str]:
    """Lines, or, `verbatim`, documents with the empty line that ends each."""
    end = "\n" if verbatim else ""
    for source in sources:
        for row in source.rows():
            if row.fault is not None:
                logger.warning("%s, row %d: left out: %s", source.name, row.number, row.fault)
            elif text_fault(row.text, "text") is None:
                for piece in pieces_of(row.text + end, None, verbatim=verbatim):
                    yield piece.text


def _parts(kind: str, vocab_size: int, cased: bool) -> tuple[Any, Any, dict[str, str]]:
    """(tokenizer without a vocabulary, its trainer, its special tokens in the order of ids)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = _SPECIAL[kind]
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": [_added(token) for token in dict.fromkeys(special.values())],
        "show_progress": False,
    }
    case = [] if cased else [normalizers.Lowercase(), normalizers.StripAccents()]
    trainer: Any
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token=special["unk_token"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**shared)
    elif kind == "character":
        backend = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(**shared)
    elif kind in ("bpe", "gpt2"):
        backend = Tokenizer(models.BPE())
        changed = [] if cased or kind in VERBATIM else [normalizers.NFD(), *case]
        backend.normalizer = normalizers.Sequence(changed)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**shared, initial_alphabet=alphabet)
    else:
        backend = Tokenizer(models.Unigram())
        spaces = normalizers.Replace(Regex(" {2,}"), " ")
        compatible = normalizers.NFKC() if cased else normalizers.NFKD()
        backend.normalizer = normalizers.Sequence([compatible, *case, spaces])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**shared, unk_token=special["unk_token"])
    return backend, trainer, special


def _framed(backend: Any, special: dict[str, str], kind: str) -> Any:
    """The transformers tokenizer: it puts the special tokens around one text or two."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    named = {name: _added(token) for name, token in special.items()}
    if kind in VERBATIM:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **named
        )
    cls, sep = special["cls_token"], special["sep_token"]
    second = f"$B:1 {sep}:1" if special is _BERT else f"{sep} $B {sep}"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {second}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def _added(token: str) -> Any:
    """In bpe and unigram the space in front of a mask is part of the word that it stands for."""
    from tokenizers import AddedToken

    return AddedToken(token, lstrip=token == _ROBERTA["mask_token"], normalized=False, special=True)
