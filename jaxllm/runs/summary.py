"""The numbers of a finished run, flat: summary.json."""

import statistics
from pathlib import Path

from jaxllm.errors import InputError
from jaxllm.files import read_json
from jaxllm.metrics.throughput import (
    StepClock,
    peak_host_memory_bytes,
    percentiles,
    tokens_per_second,
)
from jaxllm.runs.progress import Progress


def of_run(
    progress: Progress,
    clock: StepClock,
    wall_seconds: float,
    peak_rate: float | None,
    trained: tuple[int, int] | None,
) -> dict[str, float]:
    """One run.

    Tokens per second are over the seconds spent on training steps: compilation, evaluation, export
    and saving are left out, waiting for data is not. `train/wall_seconds` is all of it, building
    the job included, without the time between a stop and its resumption. `train/mfu` is the share
    of `peak_rate`, see `Job`, that the real tokens per second come to. `trained`: see `Job`.
    `train/step_seconds_p…` and the memory are those of the last process. `eval/…` are those of the
    exported model.
    """
    times = percentiles(clock.laps)
    part: dict[str, float] = {}
    if trained is not None:
        part["train/trained_parameters"] = trained[0]
        part["train/trained_share"] = trained[0] / trained[1]
    rate = tokens_per_second(progress.real_tokens, clock.seconds)
    return {
        "train/real_tokens_per_second": rate,
        "train/padded_tokens_per_second": tokens_per_second(progress.padded_tokens, clock.seconds),
        **({} if peak_rate is None else {"train/mfu": rate / peak_rate}),
        **part,
        "train/steps": progress.step,
        "train/best_step": progress.best_step,
        "train/wall_seconds": wall_seconds,
        "train/compile_seconds": clock.compile_seconds,
        **{f"train/step_seconds_p{p}": seconds for p, seconds in times.items()},
        "train/peak_host_memory_bytes": peak_host_memory_bytes(),
        **{f"eval/{name}": x for name, x in progress.best_metrics.items()},
    }


def read(path: Path) -> dict[str, float]:
    """The numbers of a summary.json; one that is not defined is None.

    Raises:
        InputError: the file is damaged.
    """
    expected = "the numbers of a finished run"
    way_out = (
        "delete it and run the same command again: the run is taken up at its last snapshot and "
        "writes it anew"
    )
    values = read_json(path, dict, expected, way_out)
    for key, value in {"train/steps": None, **values}.items():
        if not (type(value) in (int, float) or (value is None and key != "train/steps")):
            raise InputError(
                f"{path}: is damaged ({key} is {value!r}); expected {expected}; {way_out}"
            )
    return values


def over_seeds(summaries: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each value, and ``<key>_std``, the sample standard deviation (0 for one seed)."""
    result: dict[str, float] = {"train/seeds": len(summaries)}
    for key in summaries[0]:
        values = [s[key] for s in summaries if s.get(key) is not None]
        if len(values) == len(summaries):
            result[key] = statistics.fmean(values)
            result[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return result


def told(mean: dict[str, float]) -> str:
    """The evaluation in what `over_seeds` gives, as "eval/f1 0.8330 ± 0.0021, …"."""
    return ", ".join(
        f"{key} {value:.4f} ± {mean[f'{key}_std']:.4f}"
        for key, value in mean.items()
        if key.startswith("eval/") and f"{key}_std" in mean
    )
