"""Tokenizing in threads: the order, what is under way, and what an error leaves behind."""

import os
import threading

import pytest

from jaxllm.data.threads import tokenized

NAME = "TOKENIZERS_PARALLELISM"


def test_results_come_in_the_order_of_the_calls():
    last = threading.Event()
    taken = []

    def tokenize(call):
        if call == 2:
            last.set()
        else:
            assert last.wait(20)  # the first calls end after the last one
        return call * 10

    tokenized(range(3), tokenize, lambda *pair: taken.append(pair), workers=3)
    assert taken == [(0, 0), (1, 10), (2, 20)]


def test_two_calls_a_thread_are_under_way():
    asked, most = [], []

    def calls():
        for call in range(20):
            asked.append(call)
            yield call

    tokenized(calls(), str, lambda call, _: most.append(len(asked) - call), workers=2)
    assert max(most) == 5  # two a thread, and the one that is taken
    assert len(most) == 20


@pytest.mark.parametrize("where", ["calls", "tokenize", "take"])
@pytest.mark.parametrize("before", [None, "true"])
def test_an_error_ends_it_and_leaves_the_environment_as_it_was(where, before, monkeypatch):
    monkeypatch.delenv(NAME)
    if before is not None:
        monkeypatch.setenv(NAME, before)
    seen, done = [], []

    def calls():
        for call in range(100):
            if (where, call) == ("calls", 3):
                raise ValueError(where)
            yield call

    def tokenize(call):
        seen.append(os.environ[NAME])
        if (where, call) == ("tokenize", 3):
            raise ValueError(where)

    def take(call, _):
        done.append(call)
        if (where, call) == ("take", 3):
            raise ValueError(where)

    with pytest.raises(ValueError, match=where):
        tokenized(calls(), tokenize, take, workers=1)
    assert set(seen) == {"false"}
    assert done == {"calls": [0], "tokenize": [0, 1, 2], "take": [0, 1, 2, 3]}[where]
    assert os.environ.get(NAME) == before
    assert not [thread for thread in threading.enumerate() if "tokenize" in thread.name]
