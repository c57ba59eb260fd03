"""The best answers out of the scores of all windows, as BERT's run_squad.py takes them."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jaxllm.config.fields import QAConfig
from jaxllm.data.squad import Questions
from jaxllm.data.windows import Windows
from jaxllm.metrics.classification import softmax

_Span = tuple[str, int, int, float, float]  # an Answer without its probability
_CHUNK = 64  # windows at a time: some 30 MB of scores for windows of 384 tokens


@dataclass(frozen=True)
class Answer:
    """A span of the context, by characters; the text "" is no answer.

    probability: among the n best answers to the question.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float


@dataclass(frozen=True)
class Answers:
    """The answers to one question.

    n_best: likeliest first, no answer among them if it is possible.
    best: the likeliest that is an answer.
    null_odds: score of no answer less that of `best`.
    """

    n_best: list[Answer]
    best: Answer
    null_odds: float


def best_answers(
    windows: Windows,
    questions: Questions,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    qa: QAConfig,
    *,
    nullable: bool,
) -> list[Answers]:
    """The answers to each question.

    A span's score is the sum of its first token's start logit and its last token's end logit; that
    of no answer is the sum at the first token of a window, the least of all windows'. A span that
    two windows hold counts once, with its better score.

    Args:
        start_logits, end_logits: float[total], beside `windows.tokens`.
        nullable: whether a question can go without an answer.
    """
    window, first, last = _spans(windows, start_logits, end_logits, qa)
    at = windows.offsets[window]
    starts, ends = start_logits[at + first], end_logits[at + last]
    source = windows.source[window] - windows.begin[window]
    begins, stops = windows.spans[source + first, 0], windows.spans[source + last, 1]
    question = windows.question[window]
    order = np.lexsort((-(starts + ends), question))
    bounds = np.searchsorted(question[order], np.arange(len(questions.questions) + 1))
    null = windows.offsets[:-1]
    null = null[np.lexsort((start_logits[null] + end_logits[null], windows.question))]
    null = null[np.searchsorted(windows.question, np.arange(len(questions.questions)))]
    columns = [x[order].tolist() for x in (begins, stops, starts, ends)]
    result = []
    for i, asked in enumerate(questions.questions):
        context = questions.contexts[asked.context]
        found: dict[tuple[int, int], tuple[float, float]] = {}
        for begin, stop, start, end in zip(
            *(column[bounds[i] : bounds[i + 1]] for column in columns), strict=True
        ):
            found.setdefault((begin, stop), (start, end))
            if len(found) == qa.n_best:
                break
        spans = [(context[b:e], b, e, *logits) for (b, e), logits in found.items()]
        nothing = ("", 0, 0, float(start_logits[null[i]]), float(end_logits[null[i]]))
        result.append(_answers(spans, nothing, qa.n_best, nullable))
    return result


def _answers(spans: list[_Span], nothing: _Span, n_best: int, nullable: bool) -> Answers:
    def score(span: _Span) -> float:
        return span[3] + span[4]

    best = spans[0]
    if nullable:  # it is shown whatever its score, as by run_squad.py
        spans = sorted([*spans[: max(1, n_best - 1)], nothing], key=score, reverse=True)
    shares = softmax(np.array([score(span) for span in spans])).tolist()
    answers = [Answer(*span, share) for span, share in zip(spans, shares, strict=True)]
    return Answers(answers, answers[spans.index(best)], score(nothing) - score(best))


def _spans(
    windows: Windows, start_logits: np.ndarray, end_logits: np.ndarray, qa: QAConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(window, first token, last token) of the `n_best` best spans of every window."""
    parts = []
    for low in range(0, len(windows), _CHUNK):
        chunk = slice(low, low + _CHUNK)
        offsets, begin, end = windows.offsets[:-1][chunk], windows.begin[chunk], windows.end[chunk]
        width = int((end - begin).max())
        longest = min(qa.max_answer_length, width)
        column = np.arange(width)
        inside = column < (end - begin)[:, None]
        at = np.where(inside, (offsets + begin)[:, None] + column, 0)
        starts = np.where(inside, start_logits[at], -np.inf)
        ends = np.where(inside, end_logits[at], -np.inf)
        ends = np.pad(ends, ((0, 0), (0, longest - 1)), constant_values=-np.inf)
        scores = starts[:, :, None] + sliding_window_view(ends, longest, axis=1)
        scores = scores.reshape(len(offsets), -1)
        count = min(qa.n_best, scores.shape[1])
        best = np.argpartition(scores, -count, axis=1)[:, -count:]
        valid = np.take_along_axis(scores, best, axis=1) > -np.inf
        window, slot = np.nonzero(valid)
        flat = best[window, slot]
        first = flat // longest + begin[window]
        parts.append((window + low, first, first + flat % longest))
    window, first, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    return window, first, last
