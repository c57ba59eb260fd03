"""Tokenizers made from text: they load here and in transformers, and do what their kind does."""

import pytest

from jaxllm.cli import main
from jaxllm.data.tokenizer import Encoder, load_tokenizer
from jaxllm.data.train_tokenizer import KINDS, VERBATIM, train_tokenizer
from jaxllm.errors import InputError

TEXT = (
    "The lobster lives in the sea. The lobster's claws are large.\n"
    "Lobsters are caught in lobster pots; élan, Ünder, naïve.\n"
    "龙虾 lives in 海水 and the claws are large\n"
) * 20


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def train(corpus, directory, kind="wordpiece", size=400, **options):
    train_tokenizer([corpus], str(directory), kind=kind, vocab_size=size, **options)
    return load_tokenizer(directory)


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in VERBATIM])
def test_each_kind_loads_in_transformers_and_frames_its_text(corpus, tmp_path, kind, cased):
    from transformers import AutoTokenizer

    ours = train(corpus, tmp_path / "out", kind, cased=cased)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The LOBSTER's élan"
    encoded = theirs(text, "large claws")
    assert ours(text, "large claws") == encoded
    tokens = theirs.convert_ids_to_tokens(encoded["input_ids"])
    names = (theirs.cls_token, theirs.sep_token)
    assert names == (("[CLS]", "[SEP]") if kind == "wordpiece" else ("<s>", "</s>"))
    assert tokens[0] == names[0]
    assert [t for t in tokens if t == names[1]] == [names[1]] * (2 if kind == "wordpiece" else 3)
    encoder = Encoder(ours, 32, pair=True)
    arrays = encoder.encode([text], ["large claws"])
    assert arrays.tokens.tolist() == encoded["input_ids"]
    assert arrays.type_ids.tolist()[-1] == (1 if kind == "wordpiece" else 0)
    decoded = theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True).strip()
    if cased:
        assert theirs("The")["input_ids"] != theirs("the")["input_ids"]
    else:
        assert decoded.replace(" '", "'").replace("' ", "'") == "the lobster's elan"
    known = {"pad_token", "unk_token", "cls_token", "sep_token", "mask_token"}
    assert all(getattr(theirs, f"{name}_id") is not None for name in known)
    special = [getattr(theirs, f"{name}_id") for name in known]
    assert sorted(special) == [0, 1, 2, 3, 4]


def test_words_of_the_corpus_are_learned_and_chinese_characters_stand_alone(corpus, tmp_path):
    tokenizer = train(corpus, tmp_path / "out")
    assert tokenizer.tokenize("The lobster 龙虾海水") == [
        *("the", "lobster"),
        *("龙", "虾", "海", "水"),
    ]
    assert len(tokenizer) <= 400


def test_a_mask_takes_the_space_in_front_of_it_in_bpe(corpus, tmp_path):
    tokenizer = train(corpus, tmp_path / "out", "bpe")
    assert tokenizer("the <mask> sea")["input_ids"][2] == tokenizer.mask_token_id


def test_columns_of_other_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "lobster pots"}\n{"body": null}\n{"body": 3}\n' * 9)
    assert train(str(path), tmp_path / "out", text="body").tokenize("lobster") == ["lobster"]


def test_what_cannot_be_done(corpus, tmp_path, capsys):
    with pytest.raises(InputError, match=r"--vocab_size: found 20, but .* alone are \d+"):
        train(corpus, tmp_path / "out", size=20)
    assert not (tmp_path / "out").exists()
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="there is no text to learn from"):
        train(str(tmp_path / "blank.txt"), tmp_path / "out")
    with pytest.raises(InputError, match=r"none\.txt: no such file"):
        train(str(tmp_path / "none.txt"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["train-tokenizer", "--files", corpus, "--output", str(tmp_path / "full")]) == 2
    assert "full is not empty; give a new directory" in capsys.readouterr().err


def test_the_command_writes_it(corpus, tmp_path):
    arguments = ["--files", corpus, corpus, "--output", str(tmp_path / "out"), "--kind", "bpe"]
    assert main(["train-tokenizer", *arguments, "--vocab_size", "400", "--cased"]) == 0
    assert load_tokenizer(tmp_path / "out").tokenize("The") == ["The"]


def test_a_name_that_the_library_cannot_write_is_told_first(tmp_path):
    with pytest.raises(InputError, match=r"--output: found '.*out\\udcff', expected a name in UTF"):
        train_tokenizer(["absent.txt"], str(tmp_path / "out\udcff"), kind="wordpiece", vocab_size=9)


@pytest.mark.parametrize("kind", ["gpt2", "character"])
def test_kinds_for_causal_models_spell_the_text_as_it_is(tmp_path, kind):
    from transformers import AutoTokenizer

    text = "The  cat,\n\tsat.\n\nÉlan 龙虾 don't\n"
    (tmp_path / "text.txt").write_text(text * 9, encoding="utf-8")
    train(str(tmp_path / "text.txt"), tmp_path / "out", kind, size=300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert tokenizer.convert_ids_to_tokens([0]) == ["<|endoftext|>"]
    assert 0 not in ids  # nothing is put around a text
    if kind == "character":
        assert len(ids) == len(text)
        assert len(tokenizer) == len(set(text)) + 2
        assert tokenizer("☃")["input_ids"] == [tokenizer.unk_token_id]
    else:
        assert len(tokenizer) <= 300
        assert tokenizer.decode(tokenizer("☃ snow")["input_ids"]) == "☃ snow"  # by its bytes
        assert "Ċ" in tokenizer.get_vocab()


def test_the_standard_library_in_place_of_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "a.py").write_text("def lobster():\n    pass\n" * 9)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python"))
    arguments = ["--kind", "gpt2", "--vocab_size", "300", "--output", str(tmp_path / "out")]
    assert main(["train-tokenizer", "--corpus", "stdlib", *arguments]) == 0
    assert "Ġlobster" in load_tokenizer(tmp_path / "out").tokenize("def lobster():")
    assert main(["train-tokenizer", *arguments]) == 2
    assert "--files --corpus is required" in capsys.readouterr().err
