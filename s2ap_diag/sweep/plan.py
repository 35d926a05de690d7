"""From runs to tasks: what several runs begin with is a task of its own, done once, which they wait for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from s2ap_core.config import Config
from s2ap_core.methods import build_method
from s2ap_core.runs.course import BEGINNINGS, TRAINED_STAGES, Until, fingerprint
from s2ap_diag.reading.results import SHARED
from s2ap_diag.sweep.grid import Measurement, PlannedRun


@dataclass(frozen=True)
class Task:
    """A run, or the part of it that others go on from.

    Attributes:
        name: of its folder, below the sweep's.
        until: where it ends.
        after: name of the task whose run this one goes on from.
        shared: where that one ends.
    """

    name: str
    config: Config
    until: Until = "end"
    after: str | None = None
    shared: Until | None = None
    sharpness: Measurement | None = None


def plan(runs: Sequence[PlannedRun]) -> list[Task]:
    """The tasks of these runs; each stands behind the one that it waits for.

    A beginning that one run alone has is part of that run's own task.
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
                tasks[name] = Task(name, run.config, until, *_link(before))
            before = tasks[name]
        tasks[run.name] = Task(run.name, run.config, "end", *_link(before), sharpness=run.sharpness)
    return list(tasks.values())


def _link(before: Task | None) -> tuple[str | None, Until | None]:
    return (None, None) if before is None else (before.name, before.until)


def _chain(config: Config) -> list[tuple[Until, str]]:
    """The beginnings of a run that ends behind them."""
    ends = config.evaluation.stages or TRAINED_STAGES
    possible: list[Until] = list(BEGINNINGS)
    if "finetune" not in ends or not build_method(config.method).finetuned:
        possible.remove("prune")
    if set(ends) == {"pretrain"}:
        possible = ["pretrain"]
    if not 0 < config.minimizer.warmup < config.prune.epochs:
        possible = [until for until in possible if until != "warmup"]
    return [(until, fingerprint(config, until)) for until in possible]
