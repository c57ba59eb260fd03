"""Which of a run's snapshots is the best, and which are no longer needed."""

import math


class Ranking:
    """Steps and what a metric says of them.

    Args:
        keep: how many of the latest are needed, besides the best.
        metric: the name in `add`'s `metrics` that ranks; a step without it is never the best.
        higher_is_better: the direction of `metric`.
    """

    def __init__(self, *, keep: int, metric: str, higher_is_better: bool) -> None:
        self._keep, self._metric = max(1, keep), metric
        self._sign = 1.0 if higher_is_better else -1.0
        self._scores: dict[int, float | None] = {}

    def __contains__(self, step: int) -> bool:
        return step in self._scores

    def add(self, step: int, metrics: dict[str, float] | None) -> None:
        value = (metrics or {}).get(self._metric)
        self._scores[step] = None if value is None or math.isnan(value) else self._sign * value

    def remove(self, step: int) -> None:
        self._scores.pop(step, None)

    def latest(self) -> int | None:
        """The last step, or None where there is none."""
        return max(self._scores, default=None)

    def best(self) -> int | None:
        """The step with the best metric, the earliest of equals; None when none has one."""
        rated = {step: score for step, score in self._scores.items() if score is not None}
        return min(rated, key=lambda step: (-rated[step], step), default=None)

    def superseded(self) -> list[int]:
        kept = {*sorted(self._scores)[-self._keep :], self.best()}
        return [step for step in self._scores if step not in kept]
