"""Tagged words: CoNLL files, schemes of tags, words beside their pieces, what is refused."""

import gzip
import json

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer

from jaxllm.config.fields import DataConfig
from jaxllm.data.packing import Rows
from jaxllm.data.sentences import load_sentences
from jaxllm.data.tags import Scheme, scheme_of
from jaxllm.data.tokenizer import WordEncoder, load_tokenizer
from jaxllm.errors import InputError

TAGS = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
CONLL = (
    "-DOCSTART- -X- O\n\n"
    "Anna NNP B-PER\nLee NNP I-PER\nsaw VBD O\n\t\n"
    "new JJ B-LOC\nyork NNP I-LOC\n's POS O\nmovie NN O\n\n\n"
    "good JJ O"
)


@pytest.fixture
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def load(tokenizer, tmp_path):
    """load(content, split="train", names=None, file="a.conll", **fields of DataConfig)."""

    def load(content, split="train", names=None, file="a.conll", wanted="auto", **fields):
        path = tmp_path / file
        data = content.encode()
        path.write_bytes(gzip.compress(data) if file.endswith("gz") else data)
        fields = {"max_length": 32, "cache_dir": str(tmp_path / "cache")} | fields
        config = DataConfig(train=[str(path)], dev=[str(path)], **fields)
        return load_sentences(config, split, tokenizer, names, wanted)

    load.tokenizer = tokenizer
    return load


def words_of(sentences):
    return [sentences.words(i) for i in range(len(sentences))]


def tags_of(sentences, names):
    parts = np.split(sentences.word_labels, sentences.word_offsets[1:-1])
    return [[names[i] for i in part] for part in parts]


@pytest.mark.parametrize("file", ["a.conll", "b.conll.gz"])
def test_a_conll_file_gives_words_tags_and_lines(load, file):
    sentences, names = load(CONLL, file=file)
    assert names == TAGS
    assert words_of(sentences) == [
        ["Anna", "Lee", "saw"],
        ["new", "york", "'s", "movie"],
        ["good"],
    ]
    expected = [["B-PER", "I-PER", "O"], ["B-LOC", "I-LOC", "O", "O"], ["O"]]
    assert tags_of(sentences, names) == expected
    assert sentences.rows.tolist() == [3, 7, 13]
    assert (sentences.report.read, sentences.report.kept) == (3, 3)


def test_tabs_may_hold_spaces_and_columns_may_have_names(load):
    sentences, _ = load(
        "O\tthe film \tx\nB-A\tgood\tx\n", columns=["tag", "word", "more"], text="word", label="tag"
    )
    assert words_of(sentences) == [["the film", "good"]]
    assert sentences.word_labels.tolist() == [0, 1]


def test_json_lists_are_read_as_conll_is(load):
    rows = [
        {"tokens": ["Anna", "saw"], "ner_tags": ["B-PER", "O"]},
        {"tokens": ["good"], "ner_tags": ["O"]},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    fields = {"file": "a.jsonl", "text": "tokens", "label": "ner_tags"}
    sentences, names = load(text, **fields)
    assert names == ["O", "B-PER", "I-PER"]
    assert words_of(sentences) == [["Anna", "saw"], ["good"]]
    assert sentences.rows.tolist() == [1, 2]
    rows[1]["ner_tags"] = ["O", "O"]
    rows.append({"tokens": ["the", "film"], "ner_tags": ["O", "I-PER"]})
    rows.append({"tokens": [], "ner_tags": []})
    rows.append({"tokens": ["a", ""], "ner_tags": ["O", "O"]})
    with pytest.raises(InputError) as error:
        load("".join(json.dumps(row) + "\n" for row in rows), **fields)
    for part in (
        "row 2 (1, 2)",
        "row 3 (word 2: I-PER where B-PER is expected)",
        "no list of words",
        "missing word",
    ):
        assert part in str(error.value)


def test_labels_are_at_first_pieces_as_transformers_aligns_them(load, tokenizer):
    text = "Anna B-PER\nLee-Ann's I-PER\n\u200b O\nmovies O\n"
    sentences, _ = load(text)
    words = sentences.words(0)
    reference = tokenizer(words, is_split_into_words=True)
    assert sentences.tokens.tolist() == reference["input_ids"]
    labels, previous = [], None
    for word in reference.word_ids():  # run_ner's label_all_tokens=False
        new = word is not None and word != previous
        labels.append(int(sentences.word_labels[word]) if new else -1)
        previous = word
    assert sentences.labels.tolist() == labels
    assert sentences.word_tokens.tolist()[2] == -1  # the tokenizer makes nothing of it
    first = sentences.word_tokens[[0, 1, 3]]
    assert [reference.word_ids()[i] for i in first] == [0, 1, 3]
    assert all(reference.word_ids()[i - 1] != reference.word_ids()[i] for i in first)


def test_byte_level_words_are_spelled_as_behind_a_space(tmp_path):
    from transformers import RobertaTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the good movie was good", "a movie"], vocab_size=300)
    bpe.save_model(str(tmp_path))
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    plain, spaced = (RobertaTokenizerFast(**files, add_prefix_space=flag) for flag in (False, True))
    words = ["good", "movie", "!"]
    reference = spaced(words, is_split_into_words=True)
    encoded, numbers = WordEncoder(plain, 32).encode_words([words])
    assert encoded.tokens.tolist() == reference["input_ids"]
    assert numbers[numbers >= 0].tolist() == [0, 1, 2]
    assert reference.word_ids()[int(np.flatnonzero(numbers == 1)[0])] == 1


@pytest.mark.parametrize(("side", "kept"), [("right", [0, 1]), ("left", [])])
def test_words_that_are_cut_off_keep_their_tags(load, side, kept):
    # zzzz is four pieces, of which two or three stay.
    sentences, _ = load("good B-A\nzzzz I-A\nfilm O\nzzzz O\n", max_length=5, truncation=side)
    assert len(sentences.tokens) == 5
    assert np.flatnonzero(sentences.word_tokens >= 0).tolist() == kept
    assert sentences.word_labels.tolist() == [1, 2, 0, 0]
    assert (sentences.labels >= 0).sum() == len(kept)
    assert sentences.report.truncated == 1


def test_a_sentence_that_is_too_long_stops_the_run_or_is_dropped(load):
    text = "good B-A\nzzzz I-A\n\nfilm O\n"
    with pytest.raises(InputError, match=r"longer than data.max_length=5 \(.*: line 1\)"):
        load(text, max_length=5, truncation="error")
    sentences, _ = load(text, max_length=5, truncation="drop")
    assert words_of(sentences) == [["film"]]
    assert sentences.report.dropped == {"longer than data.max_length=5": 1}


def test_a_packed_batch_has_the_labels_where_the_tokens_are(load):
    sentences, _ = load(CONLL)
    rows = Rows(np.array([2, 0, 1]), np.array([0, 2, 3]))
    batch = sentences.fill(rows, row_length=16, height=3, packing=True)
    assert batch["labels"].shape == batch["label_weights"].shape == (3, 16)
    for row, members in enumerate([[2, 0], [1], []]):
        spans = [slice(*sentences.offsets[i : i + 2]) for i in members]
        tokens = np.concatenate([np.zeros(0, int), *(sentences.tokens[s] for s in spans)])
        labels = np.concatenate([np.zeros(0, int), *(sentences.labels[s] for s in spans)])
        np.testing.assert_array_equal(batch["input_ids"][row, : len(tokens)], tokens)
        weights = batch["label_weights"][row]
        np.testing.assert_array_equal(weights[: len(tokens)], labels >= 0)
        np.testing.assert_array_equal(batch["labels"][row][weights > 0], labels[labels >= 0])
        assert weights[len(tokens) :].sum() == 0


LEGAL = [
    "O B-A I-A O B-B",
    "B-A B-A I-A",
    "O S-A B-B E-B S-B",
    "B-A I-A I-A E-A O",
]
REPAIRED = [  # found, IOB2, BIOES
    ("I-A I-A O", "B-A I-A O", "B-A E-A O"),
    ("B-A I-B", "B-A B-B", "S-A S-B"),
    ("O B-A O", "O B-A O", "O S-A O"),
    ("B-A E-A I-A", "B-A I-A B-A", "B-A E-A S-A"),
    ("S-A I-A E-B", "B-A B-A B-B", "S-A S-A S-B"),
    ("I-A B-A I-A I-B", "B-A B-A I-A B-B", "S-A B-A E-A S-B"),
]


@pytest.mark.parametrize("tags", LEGAL)
def test_legal_tags_stay(tags):
    assert scheme_of(tags.split(), "auto", "here").retagged(tags.split()) == tags.split()


@pytest.mark.parametrize(("found", "iob2", "bioes"), REPAIRED)
def test_illegal_tags_become_legal(found, iob2, bioes):
    assert Scheme("IOB2", "BI").retagged(found.split()) == iob2.split()
    assert Scheme("BIOES", "BIES").retagged(found.split()) == bioes.split()


def test_illegal_sequences_are_told_dropped_or_repaired(load):
    text = "good O\nAnna I-PER\n\nfilm O\n\nnew B-LOC\nLee I-PER\n"
    with pytest.raises(InputError) as error:
        load(text)
    message = str(error.value)
    assert "2 of 3 rows cannot be used: 2 × illegal tag sequence" in message
    assert "a.conll: line 2 (I-PER where B-PER is expected), 7 (I-PER where B-PER" in message
    assert "data.on_bad_row: repair" in message
    sentences, _ = load(text, on_bad_row="drop")
    assert words_of(sentences) == [["film"]]
    assert sentences.report.dropped == {"illegal tag sequence": 2}
    sentences, names = load(text, on_bad_row="repair")
    assert tags_of(sentences, names) == [["O", "B-PER"], ["O"], ["B-LOC", "B-PER"]]
    assert (sentences.report.kept, sentences.report.repaired) == (3, 2)


BAD = {
    "line 2": ("a O\nb\nc O\n", "other than 2 columns"),
    "line 3": ("a B-X\n\nb x O\n", "other than 2 columns"),
    "line 4": ("a O\n\nb B-X\nc X\n", "unknown tag 'X'"),
    "line 1": ("a\tO\nb\t\n", "missing tag"),
    "one column": ("a\nb\n", "expected a word and its tag"),
    "the tags": ("a O\n", "at least one type of entity"),
}


@pytest.mark.parametrize("where", BAD)
def test_bad_rows_are_named_by_line(load, where):
    text, reason = BAD[where]
    with pytest.raises(InputError) as error:
        load(text)
    assert reason in str(error.value)
    assert where.replace("line 1", "line 2") in str(error.value)


def test_the_dev_part_has_the_tags_of_the_training_part(load):
    _, names = load(CONLL)
    with pytest.raises(
        InputError, match=r"unknown tag 'B-ORG' \(.*line 2\); the tags are O, B-LOC"
    ):
        load("a O\nb B-ORG\n", split="dev", names=names)
    sentences, _ = load("new I-LOC\nyork E-LOC\n", split="dev", names=names, on_bad_row="repair")
    assert tags_of(sentences, names) == [["B-LOC", "I-LOC"]]


def test_limits_and_the_cache(load, monkeypatch):
    sentences, names = load(CONLL, max_train_examples=1)
    assert names == TAGS
    assert (sentences.report.read, len(sentences)) == (1, 1)
    whole, _ = load(CONLL)
    monkeypatch.setattr(WordEncoder, "encode_words", None)  # not needed: it is on disk
    again, _ = load(CONLL)
    assert again.fingerprint == whole.fingerprint
    assert words_of(again) == words_of(whole)
    with pytest.raises(TypeError):
        load(CONLL, on_bad_row="drop")


REFUSED = {  # tags, model.tags: the way out
    ("O PER LOC", "auto"): ["model.tags: entities", "model.tags: plain"],
    ("NOUN VERB", "entities"): ["expected O", "model.tags: plain"],
    ("B-PER I-PER -", "auto"): ["expected O", "model.tags: plain"],
    ("PER-B PER-I O", "auto"): ["the letter first, as in B-PER", "model.tags: plain"],
    ("PER_B PER_I -", "entities"): ["the letter first, as in B-PER", "model.tags: plain"],
    ("O", "auto"): ["at least one type of entity", "data.label", "data.labels"],
    ("NOUN", "auto"): ["two tags or more", "data.label"],
    ("O", "plain"): ["two tags or more", "data.label"],
    ("LABEL_0 LABEL_1", "auto"): ["expected names", "data.labels", "id2label"],
}


@pytest.mark.parametrize(("tags", "wanted"), REFUSED)
def test_tags_that_do_not_tell_what_they_mean_are_refused(tags, wanted):
    with pytest.raises(InputError) as error:
        scheme_of(tags.split(), wanted, "here")
    for part in ("here: found", *REFUSED[tags, wanted]):
        assert part in str(error.value)
    if "model.tags: plain" in str(error.value):
        assert scheme_of(tags.split(), "plain", "here").names(tags.split()) == sorted(tags.split())
    if "model.tags: entities" in str(error.value):
        assert scheme_of(tags.split(), "entities", "here").kind == "IO"


PLAIN = "The DET\ncat NOUN\nsat VERB\n\nA DET\nmovie NOUN\n"


@pytest.mark.parametrize("wanted", ["auto", "plain"])
def test_plain_tags_are_learned_as_they_are(load, wanted):
    sentences, names = load(PLAIN, wanted=wanted)
    assert names == ["DET", "NOUN", "VERB"]
    assert tags_of(sentences, names) == [["DET", "NOUN", "VERB"], ["DET", "NOUN"]]
    _, names = load(CONLL, wanted="plain")
    assert names == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    with pytest.raises(InputError, match=r"set model\.tags: plain"):
        load(PLAIN, wanted="entities")


def test_bilou_keeps_its_names_and_is_repaired_in_them(load):
    text = "new B-LOC\nyork L-LOC\nAnna U-PER\nLee U-PER\n"
    sentences, names = load(text)
    assert names == ["O"] + [f"{p}-{t}" for p in "BILU" for t in ("LOC", "PER")]
    assert tags_of(sentences, names) == [["B-LOC", "L-LOC", "U-PER", "U-PER"]]
    other = "Anna I-PER\nLee E-PER\nin O\nparis S-LOC\n"
    with pytest.raises(InputError, match=r"line 1 \(I-PER where B-PER is expected\)"):
        load(other, split="dev", names=names)
    sentences, _ = load(other, split="dev", names=names, on_bad_row="repair")
    assert tags_of(sentences, names) == [["B-PER", "L-PER", "O", "U-LOC"]]


def test_advice_never_leaves_no_sentence(load):
    """Dropping rows is a way out only where others are left."""
    both, repair, drop = "new I-LOC\n\nx O\n", "data.on_bad_row: repair", "data.on_bad_row: drop"

    def advice(text, **fields):
        with pytest.raises(InputError) as error:
            load(text, **fields)
        message = str(error.value)
        return [way for way in (repair, drop) if way in message]

    assert advice(both) == [repair, drop]
    assert advice("new I-LOC\n") == [repair]
    assert load("new I-LOC\n", on_bad_row="repair")[0].report.kept == 1
    # Without repair, the first sentence would be dropped, too.
    assert advice("new I-LOC\n\nx\n", on_bad_row="repair") == []
    assert advice("new B-LOC\n\nx\n", on_bad_row="repair") == [drop]
    assert advice("zzzz O\nzzzz O\nzzzz B-A\n\nx\n", max_length=5, truncation="drop") == []
    assert advice('{"text": ["a"], "label": [1]}', file="a.jsonl") == []
    for fields, way in (
        ({"on_bad_row": "drop"}, repair),
        ({"on_bad_row": "repair", "truncation": "drop", "max_length": 3}, "data.truncation: right"),
    ):
        with pytest.raises(InputError, match=f"no sentence is left.*{way}"):
            load("new I-LOC\nzzzz I-LOC\n", **fields)


def test_numbers_are_the_tags_of_data_labels(load):
    rows = [{"text": ["Anna", "saw", "new", "york"], "label": [2, 0, -1, None]}]
    rows += [{"text": ["good", "movie"], "label": [-100, "O"]}]
    fields = {"file": "a.jsonl", "labels": TAGS}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    sentences, names = load(text, names=TAGS, **fields)
    assert names == TAGS
    assert sentences.word_labels.tolist() == [2, 0, -1, -1, -1, 0]
    assert (sentences.labels >= 0).sum() == 3
    with pytest.raises(InputError) as error:
        load(text, file="a.jsonl")
    assert "tag of type int" in str(error.value)
    assert "data.labels gives the tags in the order of such numbers" in str(error.value)
    for label, fault in (([5], "tag of type int"), ([-1], "no word with a tag")):
        with pytest.raises(InputError, match=fault):
            load(json.dumps({"text": ["a"], "label": label}), names=TAGS, **fields)


def test_masked_ids_of_a_hub_data_set_are_no_tags(load, tmp_path):
    import datasets

    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    kinds = {"tokens": datasets.Value("string"), "tags": datasets.ClassLabel(names=names)}
    rows = {"tokens": [["anna", "flew", "to", "rio"]] * 2, "tags": [[1, -1, 0, 3], [-100, 0, 0, 3]]}
    features = datasets.Features({name: datasets.List(kind) for name, kind in kinds.items()})
    part = datasets.Dataset.from_dict(rows, features=features)
    part.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    columns = {"text": "tokens", "label": "tags"}
    config = DataConfig(dataset=str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"), **columns)
    sentences, found = load_sentences(config, "train", load.tokenizer, None, "auto")
    assert found == names
    assert sentences.word_labels.tolist() == [1, -1, 0, 3, -1, 0, 0, 3]
    assert (sentences.labels >= 0).sum() == 6


def test_words_without_a_tag_do_not_part_an_entity(load):
    """As run_ner has it, which leaves such words out: B-A, none, I-A is one entity."""
    text = json.dumps({"text": ["new", "york", "city"], "label": ["B-A", float("nan"), "I-A"]})
    sentences, names = load(text, file="a.jsonl")
    assert sentences.word_labels.tolist() == [names.index("B-A"), -1, names.index("I-A")]


def test_rows_that_hold_no_lists_are_told_what_holds_them(load):
    with pytest.raises(InputError) as error:
        load("text,label\nAnna saw,B-PER O\n", file="a.csv")
    for part in ("no list of words", "two lists a line of JSON", "a word a line in CoNLL files"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "file", ["train.txt", "dev.tsv", "eng.testa", "a.char.bmes.gz", "a.conllu"]
)
def test_files_of_other_names_are_conll(load, file):
    assert words_of(load("Anna B-PER\nsaw O\n", file=file)[0]) == [["Anna", "saw"]]


def test_a_file_of_comments_has_no_sentence(load):
    with pytest.raises(InputError, match="no sentence is left: found none"):
        load("\n\n")
