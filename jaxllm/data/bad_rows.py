"""Rows that cannot be used: counted by reason, and told with where they are."""

from dataclasses import dataclass, field
from typing import Literal

from jaxllm.config.fields import DataConfig
from jaxllm.errors import InputError

_SHOWN = 5  # rows of each reason in a message


@dataclass
class _Reason:
    """Why rows were left out: how many, and the first of them."""

    setting: str  # the field of DataConfig that says what becomes of them
    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)


class BadRows:
    """The rows of a part, "train" or "dev", that were left out.

    `unit` is what a number counts: "row" after the header, or "line" of the file.
    """

    def __init__(self, data: DataConfig, split: str, unit: str = "row"):
        self._data, self._split, self._unit = data, split, unit
        self._reasons: dict[str, _Reason] = {}

    def add(
        self,
        source: str,
        number: int,
        reason: str,
        setting: Literal["on_bad_row", "truncation"] = "on_bad_row",
        note: str = "",
    ) -> None:
        """Counts a row of `source`; `note` says more about this one."""
        bad = self._reasons.setdefault(reason, _Reason(setting))
        bad.count += 1
        if len(bad.first) < _SHOWN:
            bad.first.append((source, f"{number}{note and f' ({note})'}"))

    @property
    def counts(self) -> dict[str, int]:
        """How many, by reason."""
        return {reason: bad.count for reason, bad in self._reasons.items()}

    @property
    def stop(self) -> bool:
        """Whether there is one that is not to be dropped."""
        return bool(self._stopping)

    @property
    def _stopping(self) -> set[str]:
        settings = {bad.setting for bad in self._reasons.values()}
        return {name for name in settings if getattr(self._data, name) in ("error", "repair")}

    def __str__(self) -> str:
        return " | ".join(
            f"{bad.count} × {reason} ({self._where(bad)})" for reason, bad in self._reasons.items()
        )

    def _where(self, bad: _Reason) -> str:
        files: dict[str, list[str]] = {}
        for source, number in bad.first:
            files.setdefault(source, []).append(number)
        where = "; ".join(f"{s}: {self._unit} {', '.join(rows)}" for s, rows in files.items())
        more = bad.count - len(bad.first)
        return f"{where} and {more} more" if more else where

    def raise_if_stopped(self, read: int, known: str = "", repaired: int = 0) -> None:
        """Raises InputError where one of them stops the run; `known` adds what labels there are.

        `repaired`: rows that are only kept because of data.on_bad_row: repair.
        """
        if not self.stop:
            return
        ways = {"on_bad_row": "data.on_bad_row: drop", "truncation": "data.truncation: right"}
        stays = self._data.truncation != "drop"
        lost = [
            bad.count for bad in self._reasons.values() if bad.setting != "truncation" or not stays
        ]
        if sum(lost) + repaired >= read:
            del ways["on_bad_row"]  # no row would be left
        offered = " and ".join(way for name, way in ways.items() if name in self._stopping)
        counted = " Rows count from 1 after the header." if self._unit == "row" else ""
        raise InputError(
            f"data.{self._split}: {sum(self.counts.values())} of {read} rows cannot be used: "
            f"{self}{known}.{counted} Correct them{offered and f', or set {offered}'}"
        )
