"""What a condition found of a run, of runs of one setting, or of a row of a table."""

from dataclasses import dataclass
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

    @property
    def is_note(self) -> bool:
        """Whether it holds and there is something to know."""
        return self.passed and bool(self.remedy)
