"""Tokenizers from disk."""

import io
import json
import sys

import pytest

from jaxllm.data.tokenizer import Encoder, WordEncoder, load_tokenizer, vocabulary_size
from jaxllm.errors import InputError


def test_code_of_a_tokenizer_is_refused_without_a_question(tmp_path, monkeypatch):
    """transformers would ask whether to run it, and take the answer from standard input."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "own.py").write_text("open('ran', 'w')\n")
    described = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    monkeypatch.chdir(tmp_path)
    answers = io.StringIO("yes\n" * 9)
    monkeypatch.setattr(sys, "stdin", answers)
    with pytest.raises(InputError, match=r"auto_map\), and code of a checkpoint is never run"):
        load_tokenizer(tmp_path)
    assert answers.tell() == 0
    assert not (tmp_path / "ran").exists()


def write(directory, description=None, *, vocabulary=True, **files):
    """A directory of a BERT tokenizer; `files` by their names, without .json."""
    if vocabulary:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "is", "nice"]
        (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    if description is not None:
        files["tokenizer_config"] = description
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / f"{name}.json").write_text(text)
    return directory


ADDED = {"[E2]": 9, "[E1]": 8}


@pytest.mark.parametrize("description", [None, {"tokenizer_class": "BertTokenizer"}])
def test_added_tokens_are_read_beside_a_vocabulary(description, tmp_path):
    specials = {"mask_token": "[MASK]", "additional_special_tokens": ["[E1]", "[E2]"]}
    write(tmp_path, description, added_tokens=ADDED, special_tokens_map=specials)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("[E1] Paris[E2] is [MASK]")["input_ids"]
    assert ids == [2, 8, 5, 9, 6, 4, 3]
    assert vocabulary_size(tokenizer) == 10
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved")("[E1] Paris[E2] is [MASK]")["input_ids"] == ids


def described(pieces, **values):
    """A tokenizer.json of whole words."""
    model = {"type": "WordLevel", "vocab": {p: i for i, p in enumerate(pieces)}, "unk_token": "?"}
    return {"version": "1.0", "added_tokens": [], "model": model} | values


PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
DAMAGED = {
    r"tokenizer\.json: is damaged \(JSONDecodeError": {"tokenizer": "{"},
    r"tokenizer\.json: is damaged \(KeyError": {"tokenizer": {"model": {}}},
    r"tokenizer\.json: is damaged \(Exception": {"tokenizer": described(["a"], normalizer={})},
    r"tokenizer\.json: is damaged \(PanicException": {
        "tokenizer": described(["?"], normalizer=PANIC)
    },
    r"tokenizer_config\.json: is damaged \(RecursionError": {"description": "[" * 100_000},
    r"tokenizer_config\.json: holds a JSON list": {"description": []},
    "is damaged .*mask_token": {"special_tokens_map": {"mask_token": 5}},
    r"found '\[E1\]': 40, but .* id 8; expected ids that follow": {"added_tokens": {"[E1]": 40}},
    "do_lower_case: found 'false', expected true": {"description": {"do_lower_case": "false"}},
    "strip_accents: found 0, expected true": {"description": {"strip_accents": 0}},
    "model_max_length: found '64', expected a num": {"description": {"model_max_length": "64"}},
    "model_max_length: found True, expected a num": {"description": {"model_max_length": True}},
    "model_max_length: found -1, expected a num": {"description": {"model_max_length": -1}},
    r"tokenizer_class: found \['B'\], expected the": {"description": {"tokenizer_class": ["B"]}},
    "BertJapaneseTokenizer is not a fast tokenizer: it divides text into words with MeCab": {
        "description": {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    },
    "BertJapaneseTokenizer is not a fast": {"config": {"tokenizer_class": "BertJapaneseTokenizer"}},
    "PhobertTokenizer is not a fast tokenizer: transformers runs it in Python": {
        "description": {"tokenizer_class": "PhobertTokenizer"}
    },
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damage_is_told(message, tmp_path):
    write(tmp_path, **DAMAGED[message])
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_is_not_utf8_is_damaged(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[UNK]\ncafé\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"vocab\.txt: is damaged \(UnicodeDecodeError"):
        load_tokenizer(tmp_path)


def test_a_text_that_the_library_cannot_spell_is_a_damaged_tokenizer(tmp_path):
    """It raises a plain Exception where the unknown token is not in the vocabulary."""
    tokenizer = load_tokenizer(write(tmp_path, vocabulary=False, tokenizer=described(["a"])))
    message = f"{tmp_path}: is damaged .*Missing"
    encoder = Encoder(tokenizer, 8)
    assert encoder.encode(["a"]).tokens.tolist() == [0]
    with pytest.raises(InputError, match=message):
        encoder.encode(["b"])
    with pytest.raises(InputError, match=message):
        WordEncoder(tokenizer, 8).encode_words([["b"]])
