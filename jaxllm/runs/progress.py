"""What a run remembers besides the train state; saved in each snapshot."""

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Counts and the best evaluation so far.

    `window` holds (sum, weight) of each metric since the last log line, so that a resumed run logs
    what an uninterrupted one would have.
    """

    step: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0
    wall_seconds: float = 0.0
    records: int = 0  # lines of metrics.jsonl
    window: dict[str, list[float]] = field(default_factory=dict)
    evaluated: int = 0  # the step of the last evaluation
    best_step: int = 0  # 0: none yet
    best: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0  # evaluations since the best

    def add(
        self, sums: dict[str, tuple[float, float]], real_tokens: int, padded_tokens: int
    ) -> None:
        """One step: its metrics as (sum, weight), its tokens without and with padding."""
        self.step += 1
        self.real_tokens += real_tokens
        self.padded_tokens += padded_tokens
        for name, (total, weight) in sums.items():
            entry = self.window.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += weight

    def take_window(self) -> dict[str, float]:
        """Means since the last call."""
        window, self.window = self.window, {}
        return {name: total / weight for name, (total, weight) in window.items() if weight}

    def judge(self, metrics: dict[str, float], metric: str, higher_is_better: bool) -> bool:
        """Notes the evaluation of this step; whether it is the best so far (NaN never is)."""
        self.evaluated = self.step
        value = metrics[metric]
        sign = 1 if higher_is_better else -1
        better = self.best is None or sign * value > sign * self.best
        if math.isnan(value) or not better:
            self.stale += 1
            return False
        self.best, self.best_step, self.best_metrics, self.stale = value, self.step, metrics, 0
        return True
