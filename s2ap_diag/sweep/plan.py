"""From runs to tasks: a beginning that several runs share is a task done once, for which they wait."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from s2ap_core.config import Config
from s2ap_core.runs.course import Until, beginnings, digests
from s2ap_diag.reading.results import SHARED
from s2ap_diag.sweep.grid import Measurement, PlannedRun


@dataclass(frozen=True)
class Task:
    """A run, or the beginning of one that others go on from.

    Attributes:
        name: its folder's, below the sweep's.
        until: where it ends.
        before: the task whose run this one goes on from.
    """

    name: str
    config: Config
    until: Until = "end"
    before: "Task | None" = None
    sharpness: Measurement | None = None

    @property
    def after(self) -> str | None:
        """Name of the task whose run this one goes on from."""
        return None if self.before is None else self.before.name

    @property
    def shared(self) -> Until | None:
        """Where that one ends."""
        return None if self.before is None else self.before.until


def plan(runs: Sequence[PlannedRun]) -> list[Task]:
    """Plan the tasks of these runs; each stands behind the one that it waits for.

    A beginning that only one run has is part of that run's task.
    """
    chains = {run.name: _chain(run.config) for run in runs}
    followers: dict[tuple[Until, str], set[str]] = defaultdict(set)
    for run in runs:
        chain = chains[run.name]
        for node, after in zip(chain, [*(key for _, key in chain), run.name][1:], strict=True):
            followers[node].add(after)
    tasks: dict[str, Task] = {}
    for run in runs:
        before: Task | None = None
        for node in chains[run.name]:
            if len(followers[node]) < 2:
                continue
            until, key = node
            name = f"{SHARED}/{until}-{run.config.data.name}-{run.config.network.name}-s{run.config.seed}-{key}"
            if name not in tasks:
                tasks[name] = Task(name, run.config, until, before)
            before = tasks[name]
        tasks[run.name] = Task(run.name, run.config, "end", before, run.sharpness)
    return list(tasks.values())


def _chain(config: Config) -> list[tuple[Until, str]]:
    points = beginnings(config)
    return list(zip(points, digests(config, points), strict=True))
