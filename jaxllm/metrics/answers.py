"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1, SQuAD 2.0 and CMRC 2018 say.

Sources: evaluate-v1.1.py (Rajpurkar et al., 2016), evaluate-v2.0.py (Rajpurkar et al., 2018) and
cmrc2018_evaluate.py (Cui et al., 2019). All values are percentages, as there.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

_SQUAD_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What CMRC leaves out: these, and no other punctuation ("……" in its list is two characters, which
# it compares with single ones, so an ellipsis stays).
_CMRC_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN = "\u4e00-\u9fa5"
# The rules of nltk.word_tokenize (3.10) that concern what is left beside Chinese characters, for
# nobody has that and its data installed. It splits text into sentences first, which is left out:
# "a word. 1981年" has the token "word." here.
_TREEBANK = [
    (re.compile("[«‘„]"), r" \g<0> "),
    (re.compile(r'^"'), " `` "),
    (re.compile(r"(?<=[ (\[{<])(?:\"|'')"), " `` "),
    (re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)"), r"' "),
    (re.compile(r"\"|''"), " '' "),
    (re.compile(r"[;@#$%&?!()\[\]{}<>\u2012-\u2015»]|\.{2,}|,(?!\d)"), r" \g<0> "),
    (re.compile(r"(?<=[^.])\.(?=[\])}>'»”’\s]*$)"), " . "),
    (re.compile(r"(?<=[^'\s])'[smd]?(?=\s|$)"), r" \g<0> "),
    (re.compile(r"(?<=[^'\s])(?:'(?:ll|re|ve)|n't)(?=\s|$)"), r" \g<0> "),
    (
        re.compile(
            r"\b(can(?=not\b)|(?:gim|lem)(?=me\b)|gon(?=na\b)|got(?=ta\b)|wan(?=na(?:\s|$))"
            r"|d(?='ye\b)|more(?='n\b))(not|me|na|ta|'ye|'n)"
        ),
        r" \1 \2 ",
    ),
]


@dataclass(frozen=True)
class Scoring:
    """How a predicted answer is compared with a true one.

    normalize: text as exact match compares it.
    f1: overlap of two texts, 0 to 1.
    """

    normalize: Callable[[str], str]
    f1: Callable[[str, str], float]

    def best(
        self, answers: Sequence[str], predicted: str, *, nullable: bool = True
    ) -> tuple[float, float]:
        """(exact match, F1) with the answer that fits best.

        nullable: without an answer that has a word the true one is "", as in evaluate-v2.0.py; the
        other scripts keep such answers, and give no F1 where no word is predicted.
        """
        if nullable:
            answers = [a for a in answers if self.normalize(a)] or [""]
        wanted = self.normalize(predicted)
        exact = max(float(self.normalize(a) == wanted) for a in answers)
        if not (wanted or nullable):
            return exact, 0.0
        return exact, max(self.f1(a, predicted) for a in answers)


def squad_normalize(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces."""
    text = text.lower().translate(_SQUAD_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(answer: str, predicted: str) -> float:
    """F1 of the bags of words; of an empty text 1 with another empty one, else 0."""
    true, found = squad_normalize(answer).split(), squad_normalize(predicted).split()
    if not true or not found:
        return float(true == found)
    return _f1((Counter(true) & Counter(found)).total(), len(true), len(found))


def cmrc_normalize(text: str) -> str:
    """Lower case, without the punctuation that CMRC leaves out."""
    return text.lower().strip().translate(_CMRC_PUNCTUATION)


def cmrc_f1(answer: str, predicted: str) -> float:
    """F1 of the longest run of characters (of Chinese) and words (of the rest) in common."""
    true, found = cmrc_segments(answer), cmrc_segments(predicted)
    matcher = SequenceMatcher(None, true, found, autojunk=False)
    return _f1(matcher.find_longest_match().size, len(true), len(found))


def cmrc_segments(text: str) -> list[str]:
    """Chinese characters one by one; words between them."""
    parts = re.findall(f"[{_HAN}]|[^{_HAN}]+", cmrc_normalize(text))
    return [word for part in parts for word in _words(part)]


def _words(text: str) -> list[str]:
    for pattern, spaced in _TREEBANK:
        text = pattern.sub(spaced, text)
    return text.split()


def _f1(common: int, true: int, found: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / found, common / true
    return 2 * precision * recall / (precision + recall)


SCORINGS = {
    "squad": Scoring(squad_normalize, squad_f1),
    "cmrc": Scoring(cmrc_normalize, cmrc_f1),
}


def answer_metrics(
    scoring: Scoring,
    answers: Sequence[Sequence[str]],
    predicted: Sequence[str],
    null_odds: np.ndarray | None = None,
    null_threshold: float = 0.0,
) -> dict[str, float]:
    """The metrics of N questions.

    Args:
        answers: the true answers of each question; none, with `null_odds` = it cannot be answered.
        predicted: the best answer to each.
        null_odds: float[N], how much more likely no answer is than the predicted one; then one
            above `null_threshold` counts as no answer. None = every question is answered.

    Returns:
        `exact_match`, `f1`, `total`. With `null_odds` also both for the questions that have an
        answer (`HasAns_`) and that have none (`NoAns_`), and the best that a threshold can give:
        `best_exact`, `best_f1`, with `best_exact_thresh` and `best_f1_thresh`. These are what
        evaluate-v2.0.py prints for `predicted`, `null_odds` and `--na-prob-thresh`.
    """
    nullable = null_odds is not None
    pairs = zip(answers, predicted, strict=True)
    raw = np.array([scoring.best(*pair, nullable=nullable) for pair in pairs])
    if null_odds is None:
        return _means(raw)
    has_answer = np.array([bool(texts) for texts in answers])
    silent = null_odds > null_threshold
    scores = np.where(silent[:, None], ~has_answer[:, None], raw)
    values = _means(scores)
    for prefix, chosen in (("HasAns_", has_answer), ("NoAns_", ~has_answer)):
        if chosen.any():
            values |= {prefix + name: value for name, value in _means(scores[chosen]).items()}
    spoken = np.array([bool(text) for text in predicted])
    for name, score in (("exact", raw[:, 0]), ("f1", raw[:, 1])):
        best, threshold = best_threshold(score, null_odds, has_answer, spoken)
        values |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return values


def best_threshold(
    score: np.ndarray, null_odds: np.ndarray, has_answer: np.ndarray, spoken: np.ndarray
) -> tuple[float, float]:
    """(best mean, in percent; the threshold of `null_odds` that gives it), from N questions.

    The first of equals, and 0 where silence about all of them is best, as in evaluate-v2.0.py.
    """
    order = np.argsort(null_odds, kind="stable")
    # Question after question is answered: one that has an answer adds its score, one that has none
    # takes away the point for silence.
    gain = np.where(has_answer, score, -spoken.astype(float))[order]
    totals = np.sum(~has_answer) + np.concatenate([[0.0], np.cumsum(gain)])
    best = int(np.argmax(totals))
    threshold = float(null_odds[order[best - 1]]) if best else 0.0
    return 100.0 * float(totals[best]) / len(score), threshold


def _means(scores: np.ndarray) -> dict[str, float]:
    exact, f1 = 100.0 * scores.mean(0)
    return {"exact_match": float(exact), "f1": float(f1), "total": len(scores)}
