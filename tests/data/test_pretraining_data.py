"""Examples of pretraining: chunks, next-sentence pairs, mixing, and the batch with its masks."""

import numpy as np
import pytest

from jaxllm.config.fields import DataConfig, MaskingConfig
from jaxllm.data.documents import Documents, Shard, load_documents
from jaxllm.data.packing import first_fit
from jaxllm.data.pretraining import PretrainingExamples
from jaxllm.data.segments import chunks, mixed, next_sentence_pairs, pooled
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.errors import InputError

FIRST = 10  # token ids of the tests' documents begin here, so that none is a special one


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def shard(documents, key="a"):
    """Documents as lists of line lengths; the tokens count from FIRST on."""
    sizes = [n for lines in documents for n in lines]
    lines = np.cumsum([0, *sizes])
    bounds = np.cumsum([0, *map(len, documents)])
    tokens = (np.arange(lines[-1]) % 80 + FIRST).astype(np.int32)
    hashes = np.arange(len(bounds) - 1, dtype=np.uint64)
    sizes = np.diff(lines[bounds])  # a byte a token
    return Shard(tokens, np.ones(len(tokens), bool), lines, bounds, sizes, hashes, key)


def documents_of(*shards, corpora=None):
    begins = np.cumsum([0, *(len(s.tokens) for s in shards[:-1])])
    return Documents(list(shards), np.array(corpora or range(len(shards))), begins)


@pytest.fixture
def examples(tokenizer):
    def make(documents, pairs=False, seed=0, masking=None, **settings):
        data = DataConfig(**{"max_length": 16, "train": ["a"], **settings})
        masking = masking or MaskingConfig()
        return PretrainingExamples(documents, data, masking, tokenizer, seed=seed, pairs=pairs)

    return make


def rows_of(examples, max_length=16):
    return first_fit(
        examples.lengths,
        np.arange(len(examples)),
        row_length=max_length,
        max_per_row=examples.slots(max_length, packing=True),
        window=64,
    )


def fill(examples, rows, height=None):
    height = rows.height if height is None else height
    return examples.fill(rows, row_length=16, height=height, packing=True)


def test_chunks_are_whole_documents_in_parts():
    part = chunks(shard([[3, 4], [5], [25, 1], [10]]), 100, 10)
    assert part.first.tolist() == [
        [100, 107],
        [107, 112],
        [112, 122],
        [122, 132],
        [132, 138],
        [138, 148],
    ]
    assert part.text_lengths.tolist() == [7, 5, 10, 10, 6, 10]


def books(rng, count=60):
    return shard([rng.integers(3, 9, rng.integers(2, 12)).tolist() for _ in range(count)])


def pairs_of(part, **key):
    return next_sentence_pairs(part, 0, 20, **{"seed": 0, "epoch": 0, "number": 0, **key})


def test_next_sentences_go_on_and_others_are_of_another_document(rng):
    part = books(rng, 300)
    pairs = pairs_of(part)
    bounds = part.lines[part.documents]
    first, second = (np.searchsorted(bounds, x[:, 0], "right") for x in (pairs.first, pairs.second))
    other = pairs.labels == 1
    assert (first == second)[~other].all()
    assert (first != second)[other].all()
    assert (pairs.first[~other, 1] <= pairs.second[~other, 0]).all()
    whole = pairs.text_lengths < 20  # what was not cut goes on at once
    assert (pairs.first[:, 1] == pairs.second[:, 0])[whole & ~other].all()
    assert pairs.text_lengths.max() <= 20
    assert (np.diff(pairs.first) > 0).all()
    assert (np.diff(pairs.second) > 0).all()
    assert 0.45 < other.mean() < 0.75  # half, and all that have one line left


def test_a_document_is_used_from_its_beginning_to_its_end(rng):
    part = books(rng)
    pairs = next_sentence_pairs(part, 0, 10_000, seed=0, epoch=0, number=0)
    used = np.zeros(len(part.tokens), int)
    for (a, b), (c, d), label in zip(pairs.first, pairs.second, pairs.labels, strict=True):
        used[a:b] += 1
        if not label:
            used[c:d] += 1
    assert (used == 1).all()


def test_cut_pairs_lose_tokens_at_both_ends(rng):
    part = shard([[30, 30], [30, 30], [30, 30]] * 100)
    pairs = pairs_of(part)
    front = pairs.first[:, 0] % 30
    assert (pairs.text_lengths == 20).mean() > 0.8
    assert abs(front[pairs.text_lengths == 20].mean() - 10) < 1  # 30 cut to 10: half of 20


def test_pairs_depend_on_seed_and_epoch_alone(rng):
    part = books(rng)
    again = pairs_of(part)
    np.testing.assert_array_equal(pairs_of(part).second, again.second)
    for key in ({"seed": 1}, {"epoch": 1}, {"number": 1}):
        assert not np.array_equal(pairs_of(part, **key).second, again.second)


def test_pairs_need_documents_of_several_lines():
    with pytest.raises(InputError, match="found one document, expected at least two"):
        pairs_of(shard([[3, 4]]))
    with pytest.raises(InputError, match="found documents of a single line"):
        pairs_of(shard([[3], [4]]))


def test_the_other_sentence_is_of_any_file_of_the_corpus(rng, examples):
    books_of_one = [shard([rng.integers(3, 6, 9).tolist()], name) for name in "abcd"]
    documents = documents_of(*books_of_one, corpora=[0, 0, 0, 0])
    pairs = examples(documents, pairs=True, train=["*"]).at(0).segments
    file_of = np.searchsorted(documents.begins, [pairs.first[:, 0], pairs.second[:, 0]], "right")
    first, second = file_of
    assert set(first) == {1, 2, 3, 4}
    assert ((first != second) == (pairs.labels == 1)).all()
    assert len({(a, b) for a, b in file_of.T if a != b}) > 6
    part = books(rng)
    cut = [part.first(40), shard([[4, 5], [6]], "b")]
    both = pooled(cut, [7, 900])
    assert both.lines[both.documents].tolist() == [
        *(part.lines[part.documents[:40]] + 7),
        *(900, 909, 915),
    ]


def test_words_of_text_without_spaces_are_refused(examples):
    part = shard([[60] * 9] * 2)
    few = part._replace(starts=np.arange(len(part.tokens)) % 60 == 0)
    for unit in ("word", "span"):
        examples(documents_of(part), masking=MaskingConfig(unit))
        with pytest.raises(
            InputError, match=rf"{unit}, but .* only 1\.7% begin a .* masking\.words"
        ):
            examples(documents_of(few), masking=MaskingConfig(unit))
    examples(documents_of(few))


def test_mixing_by_weight(rng):
    parts = [chunks(shard([[8]] * n), 0, 8) for n in (100, 50)]
    numbers = mixed(parts, [1, 3], rng)
    assert len(numbers) == 150
    assert len(set(numbers)) == 150  # a repeated example has another number
    which = numbers % 150 >= 100
    assert which.sum() == 112  # three quarters: each twice, and 12 of them once more
    counts = np.bincount(numbers[which] % 150 - 100)
    assert sorted(set(counts)) == [2, 3]
    assert len(set(numbers[~which])) == 38
    other = mixed(parts, [1, 3], np.random.default_rng(7))
    assert set(other) != set(numbers)
    np.testing.assert_array_equal(np.sort(mixed(parts, [2, 1], rng)), np.arange(150))


def test_weights_hold_for_tokens_whatever_the_lengths(examples):
    documents = documents_of(shard([[14]] * 60), shard([[2]] * 400, "b"))
    source = examples(documents, weights=[1.0, 1.0], train=["a", "b"])
    about = source.at(0)
    long = about.lengths == 16
    text = about.lengths - 2
    assert text.sum() == pytest.approx(60 * 14 + 400 * 2, rel=0.02)
    assert text[long].sum() == pytest.approx(text[~long].sum(), rel=0.03)
    assert not np.array_equal(source.at(1).rows, about.rows)


def test_a_limit_that_leaves_a_weighted_corpus_out(examples):
    source = examples(
        documents_of(shard([[3]])), weights=[1.0, 1.0], train=["a", "b"], max_train_examples=1
    )
    with pytest.raises(InputError, match=r"data\.max_train_examples: found 1, which leaves some"):
        source.at(0)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_batch_undone_is_the_text(rng, examples, tokenizer, pairs):
    part = books(rng)
    about = examples(documents_of(part), pairs).at(0)
    rows = rows_of(about)
    batch = fill(about, rows, rows.height + 2)
    assert not batch["surplus_masks"].any()
    ids, weights = batch["input_ids"].copy(), batch["label_weights"] > 0
    masks = ids == tokenizer.mask_token_id
    row = np.nonzero(weights)[0]
    asked = np.zeros(ids.shape, bool)
    asked[row, batch["head_positions"][weights]] = True
    assert not (masks & ~asked).any()
    assert asked.sum() == weights.sum()
    ids[row, batch["head_positions"][weights]] = batch["labels"][weights]
    assert 0.13 < asked.sum() / (ids >= FIRST).sum() < 0.17
    starts, members = rows.starts, rows.members
    for r in range(rows.height):
        expected, types = [], []
        for example in members[starts[r] : starts[r + 1]]:
            (a, b), (c, d) = about.segments.first[example], about.segments.second[example]
            text = [tokenizer.cls_token_id, *part.tokens[a:b], tokenizer.sep_token_id]
            more = [*part.tokens[c:d], tokenizer.sep_token_id] if pairs else []
            expected += [*text, *more]
            types += [0] * len(text) + [1] * len(more)
        pad = [0] * (16 - len(expected))
        assert ids[r].tolist() == expected + pad
        assert batch["token_type_ids"][r].tolist() == types + pad
    assert not batch["segment_ids"][rows.height :].any()
    assert ("pooled_positions" in batch) == pairs
    if pairs:
        slots = batch["next_sentence_weights"] > 0
        assert slots.sum() == len(members)
        np.testing.assert_array_equal(
            batch["next_sentence_labels"][slots], about.segments.labels[members]
        )
        firsts = np.take_along_axis(ids, batch["pooled_positions"], 1)[slots]
        assert (firsts == tokenizer.cls_token_id).all()


def test_masks_do_not_depend_on_batches(rng, examples):
    source = examples(documents_of(books(rng)))
    rows = rows_of(source.at(3))
    whole = fill(source.at(3), rows)
    for r in range(rows.height):
        one = fill(source.at(3), rows.between(r, r + 1))
        for name, array in one.items():
            np.testing.assert_array_equal(array[0], whole[name][r], err_msg=name)
    assert not np.array_equal(fill(source.at(4), rows)["input_ids"], whole["input_ids"])


def test_masks_without_a_slot_are_taken_back_and_counted(rng, examples):
    documents = documents_of(books(rng))
    few = examples(documents, masking=MaskingConfig(rate=0.5, slots=3)).at(0)
    rows = rows_of(few)
    many = examples(documents, masking=MaskingConfig(rate=0.5)).at(0)
    full, batch = fill(many, rows), fill(few, rows)
    assert not full["surplus_masks"].any()
    surplus = batch["surplus_masks"].sum()
    assert batch["head_positions"].shape == (rows.height, 3)
    asked, kept = full["label_weights"].sum(), batch["label_weights"].sum()
    assert surplus == asked - kept > 0
    changed = batch["input_ids"] != full["input_ids"]
    assert 0 < changed.sum() <= surplus
    for r in range(rows.height):
        at = np.flatnonzero(changed[r])
        slots = full["head_positions"][r].tolist()
        original = [full["labels"][r][slots.index(p)] for p in at]
        assert batch["input_ids"][r][at].tolist() == original
        assert set(batch["head_positions"][r]) <= {*slots, 0}


def test_repeated_examples_have_masks_of_their_own(examples):
    documents = documents_of(shard([[14]] * 4), shard([[14]] * 4, "b"))
    source = examples(documents, weights=[1.0, 7.0], train=["a", "b"])
    about = source.at(0)
    rows = rows_of(about)
    batch = fill(about, rows)
    same = about.segments.first[rows.members][:, 0]
    positions = {tuple(p) for p in batch["head_positions"][same == same.max()].tolist()}
    assert len(positions) > 1


def test_real_text_end_to_end(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the film was good\nbut not great\n\na bad story\nno plot\n")
    data = DataConfig(train=[str(tmp_path / "a.txt")], cache_dir=str(tmp_path / "c"), max_length=16)
    documents = load_documents(data, "train", tokenizer)
    source = PretrainingExamples(documents, data, MaskingConfig(), tokenizer, seed=0)
    batch = fill(source.at(0), rows_of(source.at(0)), 2)
    ids = batch["input_ids"]
    row, slot = batch["label_weights"].nonzero()
    ids[row, batch["head_positions"][row, slot]] = batch["labels"][row, slot]
    text = "the film was good but not great a bad story no plot"  # both in one row
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == [text, ""]


def test_tokenizers_that_cannot_do_it(examples, tokenizer):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE({"a": 0, "b": 1, "<s>": 2, "</s>": 3, "<m>": 4}, []))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"cls_token": "<s>", "sep_token": "</s>"}
    documents, data = documents_of(shard([[3]])), DataConfig(train=["a"])
    maskless = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    with pytest.raises(
        InputError, match=r"model\.tokenizer: .* \(without a path\) has no mask token"
    ):
        PretrainingExamples(documents, data, MaskingConfig(), maskless, seed=0)
    wordless = PreTrainedTokenizerFast(tokenizer_object=plain, mask_token="<m>", **special)
    PretrainingExamples(documents, data, MaskingConfig(), wordless, seed=0)
    with pytest.raises(InputError, match=r"masking\.unit: found span, but .* where words begin"):
        PretrainingExamples(documents, data, MaskingConfig("span"), wordless, seed=0)
