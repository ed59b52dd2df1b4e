"""What one row of the table found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """`lost` and `duplicated` count jobs (or files, or requests) of which there are none, or too many, in the end.
    `seconds` are recoveries; `broken` says in words what else was not as promised, `late` what took longer than was.

    Lateness fails the full table, never a test: a busy machine is not a broken promise."""

    injections: int = 0
    lost: int = 0
    duplicated: int = 0
    seconds: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return self.injections > 0 and not (self.lost or self.duplicated or self.broken)

    def require(self, true: bool, otherwise: str) -> None:
        if not true:
            self.broken.append(otherwise)

    def require_in_time(self, true: bool, otherwise: str) -> None:
        if not true:
            self.late.append(otherwise)

    def require_p99(self, seconds: float, what: str) -> None:
        """That no more than one in a hundred took longer."""
        slow = sum(each > seconds for each in self.seconds)
        self.require_in_time(slow <= len(self.seconds) // 100, f"{slow} times {what} took more than {seconds:g} s")

    def percentile(self, fraction: float) -> float | None:
        """By the nearest rank; None where nothing was timed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else None
