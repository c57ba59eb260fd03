"""The n best answers, beside a search through all spans of all windows."""

import numpy as np
import pytest

from jaxllm.config.fields import QAConfig
from jaxllm.data.squad import Faults, Question, Questions
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.data.windows import WindowEncoder
from jaxllm.prediction.answers import best_answers

CONTEXTS = ["she liked the plot of it , but he never liked the acting at all", "good plot"]
ASKED = [("who liked it", 0), ("what", 1), ("what was it", 0)]


@pytest.fixture(scope="module")
def case(tiny_tokenizer_dir):
    """Windows that overlap by four tokens, their questions, and random logits for all tokens."""
    asked = [Question(str(i), "", i, text, c, ()) for i, (text, c) in enumerate(ASKED)]
    encoder = WindowEncoder(load_tokenizer(tiny_tokenizer_dir), 16, QAConfig(3, doc_stride=4))
    windows, questions = encoder.windows(Questions(asked, CONTEXTS), Faults("dev"))
    logits = np.random.default_rng(0).normal(size=(2, len(windows.tokens))).astype(np.float32)
    return windows, questions, logits


def search(windows, question, logits, longest):
    """{(first character, end): score} of a question's spans, and the score of no answer."""
    found, null = {}, np.inf
    for i in np.flatnonzero(windows.question == question):
        starts, ends = logits[:, windows.offsets[i] : windows.offsets[i + 1]]
        null = min(null, starts[0] + ends[0])
        for first in range(windows.begin[i], windows.end[i]):
            for last in range(first, min(first + longest, windows.end[i])):
                shift = windows.source[i] - windows.begin[i]
                span = windows.spans[first + shift, 0], windows.spans[last + shift, 1]
                found[span] = max(found.get(span, -np.inf), starts[first] + ends[last])
    return found, null


@pytest.mark.parametrize("longest", [1, 3, 50])
@pytest.mark.parametrize("n_best", [1, 5, 1000])
@pytest.mark.parametrize("nullable", [True, False])
def test_the_best_of_all_spans(n_best, longest, nullable, case):
    windows, questions, logits = case
    qa = QAConfig(n_best=n_best, max_answer_length=longest)
    answers = best_answers(windows, questions, *logits, qa, nullable=nullable)
    assert len(answers) == len(questions.questions)
    for i, (asked, got) in enumerate(zip(questions.questions, answers, strict=True)):
        context = questions.contexts[asked.context]
        found, null = search(windows, i, logits, longest)
        best = sorted(found, key=found.get, reverse=True)
        assert (got.best.start, got.best.end) == best[0]
        assert got.null_odds == pytest.approx(null - found[best[0]], abs=1e-5)
        expected = [(context[b:e], b, e, found[b, e]) for b, e in best]
        if nullable:
            expected = sorted(
                [*expected[: max(1, n_best - 1)], ("", 0, 0, null)], key=lambda x: -x[3]
            )
        expected = expected[: max(n_best, 1 + nullable)]
        assert [(a.text, a.start, a.end) for a in got.n_best] == [e[:3] for e in expected]
        shares = np.exp([e[3] for e in expected])
        np.testing.assert_allclose(
            [a.probability for a in got.n_best], shares / shares.sum(), rtol=1e-5
        )


def test_there_are_windows_that_overlap(case):
    windows = case[0]
    assert np.bincount(windows.question).tolist() == [2, 1, 2]


def test_answers_lie_in_the_context(case):
    """The first token, the question and the last token score highest, and are no answers."""
    windows, questions, logits = case
    context = np.zeros(len(windows.tokens), bool)
    for offset, begin, end in zip(windows.offsets, windows.begin, windows.end, strict=False):
        context[offset + begin : offset + end] = True
    answers = best_answers(
        windows, questions, *np.where(context, logits, 100.0), QAConfig(), nullable=False
    )
    for asked, got in zip(questions.questions, answers, strict=True):
        for answer in got.n_best:
            assert answer.text == questions.contexts[asked.context][answer.start : answer.end] != ""
            assert answer.start_logit < 100
            assert answer.end_logit < 100
