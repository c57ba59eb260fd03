"""A text of which most is cut off gives the tokens that the whole of it would give."""

import random

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from jaxllm.config.fields import QAConfig
from jaxllm.data.squad import Faults, Question, Questions
from jaxllm.data.tokenizer import Encoder, WordEncoder
from jaxllm.data.windows import WindowEncoder

TEXT = (
    "the film was good and it's we'll don't a-b-c [SEP] [MASK] new york city hall of fame "
    "Straße naïve résumé Привет мир Ελλάς Σίσυφος 안녕하세요 こんにちは 世界 ありがとう "
    "สวัสดีครับ नमस्ते दुनिया مرحبا שלום ﬁne ½ ﷺ 12345678901 3.14159 1,000,000 ... == !! "
    "e\u0301te\u0301 👩\u200d👩\u200d👧 🏳️\u200d🌈"
)
WORDS = [*TEXT.split(), "\u0085", "\x07"]
SPACES = [" "] * 12 + ["", "", "  ", "\n", "\t", "\u3000", "\xa0", "\r\n\r\n", " " * 40]
LONG = [
    lambda r: "x" * r.randint(50, 3000),
    lambda r: "=" * r.randint(50, 1000),
    lambda r: "".join(r.choice("0123456789") for _ in range(r.randint(50, 1500))),
    lambda r: "".join(r.choice("我爱北京天安门你好世界，。") for _ in range(r.randint(50, 2500))),
    lambda r: "".join(r.choice("abcé") for _ in range(r.randint(50, 2500))),
    lambda r: "สวัสดีครับ" * r.randint(10, 200),
    lambda r: "a" + "\u0301" * r.randint(50, 900),
    lambda r: " " * r.randint(50, 3000),
    lambda r: "\x07\u200b" * r.randint(50, 900),
    lambda r: "new york city hall of fame" * r.randint(5, 100),
]
DIGITS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THOUSANDS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def a_text(random, long):
    parts = []
    for _ in range(random.randint(1, 250 if long else 30)):
        odd = long and random.random() < 0.01
        parts += [random.choice(LONG)(random) if odd else random.choice(WORDS)]
        parts += [random.choice(SPACES)]
    return "".join(parts)


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def a_tokenizer(kind):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    shared = {"special_tokens": special, "vocab_size": 400, "show_progress": False}
    texts = [a_text(random.Random(i), False) for i in range(30)]
    texts.append("12345678901 123 456 789 " * 50)
    if kind.startswith("wordpiece"):
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=kind == "wordpiece")
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**shared)
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        spaces = normalizers.Replace(Regex(" {2,}"), " ")
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), spaces])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(**shared, unk_token="[UNK]")
    else:
        backend = Tokenizer(models.BPE(unk_token="[UNK]"))
        trainer = trainers.BpeTrainer(**shared)
        if kind == "no words":
            spaces = normalizers.Replace(" ", "▁")
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        else:
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(**shared, initial_alphabet=alphabet)
            backend.pre_tokenizer = {
                "digits": split(DIGITS),
                "thousands": split(THOUSANDS),
                "bytes": pre_tokenizers.ByteLevel(add_prefix_space=True),
            }[kind]
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens(
        [
            AddedToken("new york city hall of fame", normalized=kind == "wordpiece"),
            AddedToken("世界", lstrip=True, rstrip=True, normalized=False),
            AddedToken("good", single_word=True),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")


KINDS = ("wordpiece", "wordpiece cased", "bytes", "digits", "thousands", "unigram", "no words")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    made = a_tokenizer(request.param)
    made.kind = request.param
    return made


def whole(encoder):
    """The same encoder, but with all of every text."""
    encoder._shortened = lambda text: text
    encoder._part = lambda words: (0, list(words))
    return encoder


def same(found, expected):
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.type_ids.tolist() == expected.type_ids.tolist()
    assert found.lengths.tolist() == expected.lengths.tolist()
    cut = found.full_lengths > found.lengths
    assert cut.tolist() == (expected.full_lengths > expected.lengths).tolist()
    exact = found.whole
    assert found.full_lengths[exact].tolist() == expected.full_lengths[exact].tolist()
    assert (found.full_lengths <= expected.full_lengths).all()


@pytest.mark.parametrize("side", ["right", "left", "error"])
def test_the_tokens_are_those_of_the_whole_text(tokenizer, side):
    texts = [a_text(random.Random(i), True) for i in range(25)]
    texts += [make(random.Random(i)) for i, make in enumerate(LONG)]
    for length in (6, 17):
        found = Encoder(tokenizer, length, side).encode(texts)
        expected = whole(Encoder(tokenizer, length, side)).encode(texts)
        same(found, expected)
        assert length > 6 or tokenizer.kind == "no words" or not found.whole.all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokens_are_the_same_wherever_the_cut_falls(tokenizer, side):
    core = (
        "a b new york city hall of fame e\u0301 don't 世界 12345678 good,good new york city hall of"
    )
    far = " the film was good" * 40
    texts = []
    for filler in (" ", "\u200b"):
        for n in range(20, 6 * 16, 1 + (filler == " ")):
            parts = [filler * n, core, far]
            texts.append("".join(parts[::-1] if side == "left" else parts))
    texts += ["a b c " + "1234567890" * 40 + "1" * n for n in range(4)]
    texts += ["1234567890" * 40 + "1" * n + " a b" for n in range(4)]
    texts += ["1234567890" * 40 + "1" * n + " a b" * 200 for n in range(4)]
    # One word, of which only the parts are short enough for wordpiece.
    texts += ["z" * 90 + "\u200b" * 1000 + "a" * 20, "a" * 20 + "\u200b" * 1000 + "z" * 90]
    same(
        Encoder(tokenizer, 6, side).encode(texts), whole(Encoder(tokenizer, 6, side)).encode(texts)
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [9, 10])  # room for an odd and an even number of tokens
def test_the_tokens_are_those_of_whole_pairs(tokenizer, side, length):
    texts, pairs = ([a_text(random.Random(j + i), i % 5 > 0) for i in range(15)] for j in (0, 1))
    pairs[::3] = ["good"] * 5
    found = Encoder(tokenizer, length, side, pair=True).encode(texts, pairs)
    same(found, whole(Encoder(tokenizer, length, side, pair=True)).encode(texts, pairs))
    assert tokenizer.kind == "no words" or not found.whole.all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokens_are_those_of_all_words(tokenizer, side):
    words = [w for w in WORDS if w not in ("\u0085", "\x07")]
    texts = [random.Random(i).choices([*words, "\u200b"], k=20 * i + 1) for i in range(20)]
    (found, numbers), (expected, all_numbers) = (
        encoder.encode_words(texts)
        for encoder in (WordEncoder(tokenizer, 9, side), whole(WordEncoder(tokenizer, 9, side)))
    )
    same(found, expected)
    assert numbers.tolist() == all_numbers.tolist()
    assert not found.whole.all()


def test_what_is_tokenized_is_a_multiple_of_what_is_kept(tokenizer, monkeypatch):
    text = "the film was good. " * 5_000
    seen = []
    encoder = Encoder(tokenizer, 16)
    for name in ("encode_batch", "encode_batch_fast"):
        own = getattr(encoder._backend, name)
        monkeypatch.setattr(
            encoder._backend,
            name,
            lambda texts, own=own, **how: seen.append(len(texts[0])) or own(texts, **how),
        )
    found = encoder.encode([text])
    if tokenizer.kind == "no words":  # nothing of it is sure without the rest
        assert found.count(0) == str(found.full_lengths[0])
    else:
        assert found.count(0) == "more than 16"
        assert sum(seen) <= 4 * 16 * 16


def test_a_question_without_end_is_cut(tokenizer):
    def windows(question):
        encoder = WindowEncoder(tokenizer, 24, QAConfig(max_question_length=6, doc_stride=4))
        asked = Question("a", "f", 1, question, 0, ())
        found, _ = encoder.windows(Questions([asked], ["the film was good"]), Faults("train"))
        return found.tokens.tolist(), found.cut.tolist()

    question = "who said it's good and " * 9
    assert windows(question * 500) == windows(question)
    assert windows(question)[1] == [0]
