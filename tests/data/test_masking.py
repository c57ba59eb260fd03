"""Masks: their shares, their units, and that they depend on addresses alone."""

import numpy as np
import pytest

from jaxllm.data.masking import Masking, mask
from jaxllm.data.philox import below, philox, uniform

V, CLS, SEP, MASK, UNK = 200, 0, 1, 2, 3
ORDINARY = np.arange(V) > UNK


def masking(unit="token", rate=0.15, **shares):
    return Masking(unit, rate, MASK, ORDINARY, **shares)


def examples(rng, lengths):
    """Texts of ordinary tokens with [CLS] and [SEP] around them; three in ten go on with a word."""
    texts = [rng.integers(UNK + 1, V, n) for n in lengths]
    tokens = np.concatenate([[CLS, *text, SEP] for text in texts]).astype(np.int32)
    starts = rng.random(len(tokens)) < 0.7
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths) + 2)])
    return tokens, starts, offsets, np.arange(len(lengths))


def run(arrays, how, seed=0, epoch=0):
    return mask(how, *arrays, seed=seed, epoch=epoch)


def test_philox_gives_the_published_numbers():
    # kat_vectors of the Random123 library, philox4x32 10.
    ones = np.array([-1])
    known = {
        (0, 0): ([0], [0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**32 - 1, 2**32 - 1): (ones, ones, 2**32 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (0xA4093822, 0x299F31D0): (
            [0x85A308D3243F6A88],
            [0x13198A2E],
            0x03707344,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    }
    for key, (example, position, stream, expected) in known.items():
        words = philox(key, np.array(example), np.array(position), stream)
        assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


def test_numbers_are_even():
    bits = philox((3, 4), np.arange(40_000), np.zeros(40_000, int), 0)
    for word in bits:
        counts = np.bincount(below(word, 10), minlength=10)
        assert abs(counts - 4000).max() < 300  # five standard deviations
        assert abs(uniform(word).mean() - 0.5) < 0.01


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_rate_and_shares(rng, unit):
    arrays = examples(rng, rng.integers(20, 120, 400))
    tokens = arrays[0]
    masked, asked = run(arrays, masking(unit))
    ordinary = ORDINARY[tokens]
    assert asked[ordinary].mean() == pytest.approx(0.15, abs=0.002)
    assert not asked[~ordinary].any()
    np.testing.assert_array_equal(masked[~asked], tokens[~asked])
    assert (masked[asked] == MASK).mean() == pytest.approx(0.8, abs=0.03)
    same, other = masked[asked] == tokens[asked], ~np.isin(masked, [MASK]) & (masked != tokens)
    assert same.mean() == pytest.approx(0.1, abs=0.02)
    assert other.sum() / asked.sum() == pytest.approx(0.1, abs=0.02)
    assert ORDINARY[masked[other]].all()


def test_the_rate_is_exact_on_average_for_short_texts_too(rng):
    arrays = examples(rng, np.full(4000, 3))
    assert run(arrays, masking())[1].sum() / 12_000 == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_masks_depend_on_seed_epoch_and_number_alone(rng, unit):
    tokens, starts, offsets, numbers = arrays = examples(rng, rng.integers(5, 60, 30))
    masked, asked = run(arrays, masking(unit))
    order = rng.permutation(30)
    pick = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in order])
    moved = np.concatenate([[0], np.cumsum(np.diff(offsets)[order])])
    again, asked_again = run((tokens[pick], starts[pick], moved, numbers[order]), masking(unit))
    np.testing.assert_array_equal(again, masked[pick])
    np.testing.assert_array_equal(asked_again, asked[pick])
    for other in ({"seed": 1}, {"epoch": 1}):
        assert (run(arrays, masking(unit), **other)[1] != asked).mean() > 0.1
    assert (run((tokens, starts, offsets, numbers + 2**40), masking(unit))[1] != asked).any()


def test_whole_words_are_masked_whole_and_at_most_at_the_rate(rng):
    arrays = examples(rng, rng.integers(20, 120, 200))
    _, starts, offsets, _ = arrays
    _, asked = run(arrays, masking("word"))
    for begin, end in zip(offsets[:-1] + 1, offsets[1:] - 1, strict=True):
        word = np.cumsum(starts[begin:end])
        sizes = np.bincount(word)
        chosen = np.bincount(word, asked[begin:end])
        assert np.isin(chosen, [0, *sizes]).all()
        assert np.all((chosen == 0) | (chosen == sizes))
        assert asked[begin:end].sum() <= np.floor(0.15 * (end - begin)) + 1


def test_words_are_taken_as_a_plain_loop_takes_them(rng):
    """BERT's create_pretraining_data: in random order, passing over what no longer fits."""
    from jaxllm.data.masking import _whole_words

    for _ in range(50):
        sizes = [rng.integers(1, 6, rng.integers(1, 12)) for _ in range(4)]
        room = rng.integers(0, 14, 4)
        first = np.concatenate([np.arange(s) == 0 for size in sizes for s in size])
        owner = np.repeat(np.arange(4), [size.sum() for size in sizes])
        score = rng.permutation(len(owner)).astype(np.uint64)
        begins = np.flatnonzero(first)
        expected = np.zeros(len(owner), bool)
        left = room.copy()
        for begin in begins[np.argsort(score[begins])]:
            size = np.diff(begins, append=len(first))[begins == begin][0]
            if size <= left[owner[begin]]:
                left[owner[begin]] -= size
                expected[begin : begin + size] = True
        np.testing.assert_array_equal(_whole_words(score, owner, first, room), expected)


def words_of(run, starts):
    """The words of one run of ordinary tokens, each a list of positions."""
    words = []
    for position in run:
        if starts[position] or not words:
            words.append([])
        words[-1].append(position)
    return words


def chosen_by_loop(unit, runs, starts, score, length, room):
    """[(position, the position whose draw decides what becomes of it), …] of one example."""
    if unit == "token":
        order = sorted((p for run in runs for p in run), key=lambda p: score[p])
        return [(p, p) for p in order[:room]]
    words = [words_of(run, starts) for run in runs]
    found = []
    if unit == "word":
        for word in sorted((w for run in words for w in run), key=lambda w: score[w[0]]):
            if len(found) + len(word) <= room:
                found += [(p, p) for p in word]
        return found
    shares = np.array([0.8**k for k in range(10)])
    ends = np.cumsum(shares) / shares.sum()
    spans = [
        (score[word[0]], [p for w in run[i : i + 1 + (ends <= length[word[0]]).sum()] for p in w])
        for run in words
        for i, word in enumerate(run)
    ]
    for _, span in sorted(spans):
        for p in span:
            if len(found) < room and p not in [done for done, _ in found]:
                found.append((p, span[0]))
    return found


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("shares", [{}, {"masked": 0.3, "random": 0.6}])
def test_masks_are_those_of_a_plain_loop(unit, shares, rng):
    """Each example on its own, from the draws of its tokens and, for how many, of the example."""
    how, seed, epoch = masking(unit, 0.4, **shares), 5, 3
    ordinary = np.flatnonzero(ORDINARY)
    texts = [[CLS, SEP, SEP, 10, 11, 12, 13, SEP]]
    for _ in range(60):
        texts.append([CLS])
        for _ in range(rng.integers(1, 4)):
            texts[-1] += [*rng.integers(UNK + 1, V, rng.integers(1, 15)).tolist(), SEP]
    texts.append([CLS, SEP])  # nothing to ask for, and the last
    tokens = np.array([t for text in texts for t in text], np.int32)
    starts = rng.random(len(tokens)) < 0.7
    starts[3] = False  # the first word that may be asked for begins all the same
    offsets = np.cumsum([0, *map(len, texts)])
    numbers = rng.permutation(1000)[: len(texts)]
    expected, expected_asked = tokens.copy(), np.zeros(len(tokens), bool)
    for text, number, begin in zip(texts, numbers, offsets, strict=False):
        places = np.arange(len(text))
        score, kind, other, length = philox((seed, epoch), np.full(len(text), number), places, 0)
        runs, before = [], False
        for place, token in enumerate(text):
            if ORDINARY[token]:
                runs += [] if before else [[]]
                runs[-1].append(place)
            before = ORDINARY[token]
        of_example = philox((seed, epoch), np.array([number]), np.array([0]), 1)[0]
        room = int(0.4 * sum(map(len, runs)) + uniform(of_example)[0])
        here = starts[begin : begin + len(text)]
        for place, source in chosen_by_loop(unit, runs, here, score, uniform(length), room):
            expected_asked[begin + place] = True
            drawn = uniform(kind)[source]
            if drawn < how.masked:
                expected[begin + place] = MASK
            elif drawn < how.masked + how.random:
                expected[begin + place] = ordinary[below(other, len(ordinary))[place]]
    masked, asked = run((tokens, starts, offsets, numbers), how, seed, epoch)
    np.testing.assert_array_equal(asked, expected_asked)
    np.testing.assert_array_equal(masked, expected)


def test_a_draw_at_a_share_is_not_within_it(monkeypatch):
    """And of two spans with one score over a token the nearer one is it."""
    from jaxllm.data import masking as module

    half = np.full(3, 2**31, np.uint64)
    monkeypatch.setattr(module, "philox", lambda *_: (half,) * 4)
    arrays = (np.array([CLS, 10, SEP], np.int32), np.ones(3, bool), np.array([0, 3]), np.zeros(3))
    masked, asked = run(arrays, masking("token", 1.0, masked=0.5, random=0.0))
    assert asked.tolist() == [False, True, False]
    assert masked.tolist() == [CLS, 10, SEP]
    two = np.array([True, True])
    best, anchor = module._spans(np.array([5, 5]), np.array([2, 1]), two, np.zeros(2, int))
    assert (best.tolist(), anchor.tolist()) == ([5, 5], [0, 1])


def test_spans_are_runs_of_whole_words_with_one_kind_each(rng):
    lengths = np.full(300, 100)
    arrays = examples(rng, lengths)
    tokens, starts, _, _ = arrays
    _, single = run(arrays, masking("token"))
    _, asked = run(arrays, masking("span"))
    runs = np.flatnonzero(asked & ~np.roll(asked, 1))
    assert asked.sum() / len(runs) > 2.5 * single.sum() / (single & ~np.roll(single, 1)).sum()
    # Runs begin at a word, and few are cut inside one: one span of each example at most.
    begins = starts | (tokens == CLS) | np.roll(tokens == CLS, 1)
    assert begins[runs].all()
    ends = np.flatnonzero(asked & ~np.roll(asked, -1))
    assert (~begins[ends + 1] & (tokens[ends + 1] != SEP)).sum() <= len(lengths)
    everything = run(arrays, masking("span", masked=0.5, random=0.0))[0]
    inside = asked & np.roll(asked, 1) & ~starts  # pieces of the same word share their span's kind
    kinds = everything == MASK
    assert (kinds[inside] == kinds[np.flatnonzero(inside) - 1]).all()
    assert 0.35 < kinds[asked].mean() < 0.65


def test_spans_stay_on_their_side_of_a_separator():
    tokens = np.array([CLS, 10, 11, SEP, 12, 13, SEP] * 400, np.int32)
    numbers, offsets = np.arange(400), np.arange(401) * 7
    arrays = (tokens, np.ones(len(tokens), bool), offsets, numbers)
    _, asked = run(arrays, masking("span", 0.5))
    asked = asked.reshape(400, 7)
    assert not asked[:, [0, 3, 6]].any()
    # Both tokens of one side are asked for together more often than one of each side.
    together = (asked[:, 1] & asked[:, 2]) | (asked[:, 4] & asked[:, 5])
    assert together.sum() > (asked.sum(1) == 2).sum() / 2


def test_nothing_to_mask():
    arrays = (np.array([CLS, SEP], np.int32), np.ones(2, bool), np.array([0, 2]), np.zeros(1, int))
    for unit in ("token", "word", "span"):
        masked, asked = run(arrays, masking(unit))
        assert masked.tolist() == [CLS, SEP]
        assert not asked.any()
