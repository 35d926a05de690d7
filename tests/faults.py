"""A tally of the faults that the robustness tests try, shown at the end of the session.

Where several processes share the tests out, each worker hands its tally to the process that prints.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class FaultTable:
    """How often each kind of fault was tried, and survived: refused in one line, or read right."""

    survived: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, survived: bool) -> None:
        """Count one try of this kind, such as ``bit flip / inspect``."""
        (self.survived if survived else self.lost)[kind] += 1

    def merge(self, survived: dict[str, int], lost: dict[str, int]) -> None:
        """Add what another process counted."""
        self.survived.update(survived)
        self.lost.update(lost)

    def tried(self, kind: str = "") -> int:
        """Tries of all kinds that begin with ``kind``."""
        return sum(n for tally in (self.survived, self.lost) for name, n in tally.items() if name.startswith(kind))

    def lines(self) -> Iterator[str]:
        """The table: tried, survived, lost, kind."""
        kinds = sorted(self.survived.keys() | self.lost.keys())
        rows = [("faults", "tried", "survived", "lost")]
        counts = [(self.survived[kind], self.lost[kind]) for kind in kinds]
        rows += [(kind, *map(str, (sum(both), *both))) for kind, both in zip(kinds, counts, strict=True)]
        rows.append(("all", *map(str, (self.tried(), self.survived.total(), self.lost.total()))))
        width = max(len(row[0]) for row in rows)
        for name, *cells in rows:
            yield f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells)


TABLE = pytest.StashKey[FaultTable]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = FaultTable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        table = session.config.stash[TABLE]
        session.config.workeroutput["faults"] = (dict(table.survived), dict(table.lost))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # A worker that crashed hands over nothing; pytest-xdist reports it as a failed test.
    node.config.stash[TABLE].merge(*getattr(node, "workeroutput", {}).get("faults", ({}, {})))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash[TABLE]
    if table.tried():
        terminalreporter.section("faults tried, survived, lost")
        for line in table.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> FaultTable:
    """Where tests count what they tried: ``fault_table.add(kind, survived)``."""
    return pytestconfig.stash[TABLE]
