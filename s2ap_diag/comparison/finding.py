"""What a condition found of a run, of runs of one setting, or of a row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Finding:
    """Whether a condition holds.

    Attributes:
        run: the run's path, of several the first one's, or a table and its row.
        value, limit: what was found, and what it is held against; None where there is no such number.
        remedy: why it fails and what to type; of what holds it is empty, unless there is something to know.
    """

    run: str
    condition: str
    passed: bool
    value: float | str | None
    limit: float | str | None
    remedy: str

    @classmethod
    def of(
        cls, run: str, condition: str, passed: bool, value: float | str | None, limit: float | str | None, remedy: str
    ) -> Self:
        """Make a finding whose remedy is left out where it holds."""
        return cls(run, condition, passed, value, limit, "" if passed else remedy)

    @classmethod
    def note(cls, run: str, condition: str, value: float | None, limit: float, remedy: str) -> Self:
        """Make a finding that holds, with something to know."""
        return cls(run, condition, True, value, limit, remedy)

    @classmethod
    def unreadable(cls, run: str, reason: str) -> Self:
        """Make the finding of a run that is half done or damaged."""
        return cls(run, "complete", False, None, None, " ".join(reason.split()))

    @property
    def is_note(self) -> bool:
        """Whether it holds and there is something to know."""
        return self.passed and bool(self.remedy)


def gathered(findings: Sequence[Finding]) -> list[Finding]:
    """Let the first finding of each condition stand for all of it, and say how many they are."""
    by_condition: dict[str, list[Finding]] = {}
    for finding in findings:
        by_condition.setdefault(finding.condition, []).append(finding)
    return [
        replace(first, run=f"{first.run} and {len(rest)} more" if rest else first.run)
        for first, *rest in by_condition.values()
    ]
