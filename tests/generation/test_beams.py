"""Beam search on bigrams, whose best continuations can be counted out."""

from dataclasses import dataclass, replace
from itertools import permutations, product
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.generation import beams, decode, generate
from jaxllm.generation.options import Options
from jaxllm.generation.processors import Processors
from jaxllm.generation.prompts import Prompts

PLACES = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Last:
    """A cache that holds each row's last token."""

    token_R: jax.Array
    layers: Any = ()

    def rows(self, index_R):
        return replace(self, token_R=self.token_R[index_R])


class Bigrams:
    """A model whose logits depend on the cache, with the token before, and on the last token."""

    def __init__(self):
        self.read = []

    def merge(self, params_UVV):
        def apply(ids_RT, *, cache, **_):
            self.read.append(ids_RT.shape)
            before_R = ids_RT[:, -2] if ids_RT.shape[1] > 1 else cache.token_R
            logits_R1V = params_UVV[before_R, ids_RT[:, -1]][:, None]
            return SimpleNamespace(logits=logits_R1V, cache=replace(cache, token_R=ids_RT[:, -1]))

        apply.stack = SimpleNamespace(
            empty_cache=lambda rows, places: Last(jnp.zeros(rows, jnp.int32))
        )
        return apply


GRAPH = Bigrams()


def searched(logits_UVV, prompt_BP, options, *, new_tokens=5, seed=None, graph=GRAPH):
    """The result of a search, its N cut to `new_tokens`."""
    (B, P), V = prompt_BP.shape, len(logits_UVV)
    processors = Processors.of(
        options,
        vocabulary=V,
        ignored_R=np.zeros(B * options.num_beams),
        prompt_length=P,
        min_length=0,
        max_length=P + new_tokens,
    )
    fill = np.int32(beams.fill_id(options))
    keys_B = None if seed is None else decode.row_keys(seed, 1, np.arange(B))
    ends_V = np.isin(np.arange(V), options.eos_token_id)
    ids_BS = np.full((B, P + PLACES), fill)
    ids_BS[:, :P] = prompt_BP
    return beams.search(
        graph,
        PLACES,
        options.num_beams,
        beams.candidates(options, V),
        decode.Kept(),
        logits_UVV,
        (),
        decode.Rules(processors, ends_V, fill, None, keys_B),
        beams.BeamRules.of(options, new_tokens, PLACES),
        ids_BS,
        np.int32(P),
        np.int32(P + new_tokens),
        prompt_BP,
        np.ones_like(prompt_BP),
    )


def continuations(found, P=2, new_tokens=5):
    return np.asarray(found.ended.ids_BKS)[:, :, P : P + new_tokens]


def random_logits(V, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (V, V, V)).astype(np.float32)


PROMPTS = np.array([[0, 1], [3, 2]], np.int32)


def test_enough_beams_find_the_best_of_all_continuations():
    """64 beams lose none of 4 ** 4 continuations that is among the best 64. The best of the first
    prompt does not begin with the most probable token.
    """
    logits = random_logits(4, seed=1)
    log = np.asarray(jax.nn.log_softmax(logits))
    found = searched(logits, PROMPTS, Options(num_beams=64), new_tokens=4)
    for row, prompt in enumerate(PROMPTS):
        scores = {}
        for ids in product(range(4), repeat=4):
            text = [*prompt, *ids]
            scores[ids] = sum(log[text[i], text[i + 1], text[i + 2]] for i in range(4)) / 4
        best = sorted(scores, key=scores.get, reverse=True)[:64]
        np.testing.assert_array_equal(continuations(found, new_tokens=4)[row], best)
        np.testing.assert_allclose(
            found.ended.scores_BK[row], [scores[ids] for ids in best], rtol=1e-5
        )
    assert np.argmax(logits[0, 1]) != continuations(found)[0, 0, 0]


def test_one_program_serves_every_penalty_every_stop_and_every_length():
    graph = Bigrams()
    lengths = set()
    for penalty, stopping, new_tokens in ((1.0, False, 5), (0.0, True, 9), (2.0, "never", 3)):
        options = Options(
            num_beams=3, length_penalty=penalty, early_stopping=stopping, eos_token_id=(3,)
        )
        found = searched(random_logits(5), PROMPTS, options, new_tokens=new_tokens, graph=graph)
        lengths.add(int(found.length))
    assert graph.read == [(2, 2), (6, 1)]  # traced once; prompts are read once, not once a beam
    assert len(lengths) > 1


def test_some_beams_go_on_where_all_of_the_best_end():
    """Three tokens end a text and are more probable than the others, so that of the best six
    candidates behind two beams all end; long continuations win, and need those that go on.
    """
    logits = np.zeros((6, 6, 6), np.float32)
    logits[..., [1, 2, 3]] = 0.5
    for before, last in PROMPTS:
        logits[before, last, [0, 4]] = 3.0  # the first tokens of two beams
    options = Options(
        num_beams=2, eos_token_id=(1, 2, 3), length_penalty=4.0, early_stopping="never"
    )
    found = searched(logits, PROMPTS, options)
    assert int(found.length) == 2 + 5
    assert not np.isin(continuations(found)[:, 0, :-1], [1, 2, 3]).any()


def test_never_hopes_for_the_length_that_is_asked_for():
    """Three new tokens, whatever the size of the buffers; unless longer ones score less."""
    options = Options(num_beams=2, early_stopping="never", length_penalty=2.0)
    assert set(beams.BeamRules.of(options, 3, PLACES).hopes_N.tolist()) == {9.0}
    less = replace(options, length_penalty=-1.0)
    assert beams.BeamRules.of(less, 3, PLACES).hopes_N.tolist()[:3] == [1.0, 0.5, np.float32(1 / 3)]


def test_more_beams_than_continuations_are_filled_behind_the_real_ones():
    """Three tokens, one place: of five beams the last two have no score."""
    found = searched(random_logits(3), PROMPTS[:1], Options(num_beams=5), new_tokens=1)
    assert set(continuations(found, new_tokens=1)[0, :3, 0]) == {0, 1, 2}
    assert (np.asarray(found.ended.scores_BK)[0, :3] > -100).all()
    assert (np.asarray(found.ended.scores_BK)[0, 3:] < -1e8).all()


def test_a_row_with_nan_is_at_fault_and_its_neighbour_is_not():
    logits = random_logits(4)
    logits[0, 1, 2] = -np.nan  # `lax.top_k` puts this one last
    found = searched(logits, PROMPTS, Options(num_beams=3, suppress_tokens=(0, 1)))
    assert found.fault_B.tolist() == [decode.NOT_A_NUMBER, 0]
    logits[0, 1, 2] = 0
    found = searched(logits, PROMPTS, Options(num_beams=3, suppress_tokens=(0, 1, 2, 3)))
    assert found.fault_B.tolist() == [decode.NO_TOKEN_LEFT] * 2


def test_drawn_beams_repeat_with_their_seed_whatever_the_batch():
    logits, options = random_logits(6) / 4, Options(num_beams=3, do_sample=True, top_k=0)
    both = searched(logits, PROMPTS, options, seed=3)
    again = searched(logits, PROMPTS[[0, 0]], options, seed=3)
    np.testing.assert_array_equal(continuations(both)[0], continuations(again)[0])
    other = searched(logits, PROMPTS, options, seed=4)
    assert (continuations(both) != continuations(other)).any()


def test_candidates_are_drawn_without_replacement_by_their_probabilities():
    """How often the most probable of six tokens is among four that are drawn, of 3,000 prompts."""
    logits = np.broadcast_to(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], np.float32), (6, 6, 6))
    chances = np.asarray(jax.nn.softmax(logits[0, 0]))
    expected = 0.0
    for order in permutations(range(6), 4):
        left, chance = 1.0, 1.0
        for token in order:
            chance *= chances[token] / left
            left -= chances[token]
        expected += chance * (5 in order)
    prompts = np.zeros((3000, 2), np.int32)
    options = Options(num_beams=2, do_sample=True, top_k=0)
    found = continuations(searched(logits, prompts, options, new_tokens=1, seed=0), new_tokens=1)
    assert (found[:, 0, 0] > found[:, 1, 0]).all()  # of those drawn, the best first
    error = (expected * (1 - expected) / 3000) ** 0.5
    assert abs((found[:, 0, 0] == 5).mean() - expected) < 4 * error


def test_tokens_of_beams_are_not_streamed():
    writer = generate.Writer(GRAPH, None, None)
    prompts = Prompts(PROMPTS, np.ones_like(PROMPTS))
    with pytest.raises(InputError, match=r"streamer: .*num_beams=2.* leave it out"):
        generate.generate(writer, prompts, Options(num_beams=2), streamer=object())
