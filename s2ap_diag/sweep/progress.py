"""A schedule run under a progress bar."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

import click
import fsspec

from s2ap_core.errors import InputError
from s2ap_diag.execution.progress import plain_progress
from s2ap_diag.execution.signals import resumable
from s2ap_diag.reading.snapshot import Watcher
from s2ap_diag.sweep.schedule import Schedule, TaskStatus

EVERY = 2.0
"""Seconds between two looks at a run."""


def run_schedule(schedule: Schedule, executor: Executor, command: str, *, quiet: bool) -> None:
    """Run what is missing, with a bar on a terminal and else a line for each task that ends.

    Args:
        command: what goes on after an interruption, in words.
    """
    with resumable(command), plain_progress(quiet) as progress:
        total = sum(status.work for status in schedule.statuses.values())
        bar = progress.add_task("sweep", total=total, completed=int(total - schedule.work_left))

        def on_change(status: TaskStatus) -> None:
            statuses = schedule.statuses.values()
            counts = {state: sum(other.state == state for other in statuses) for state in ("running", "done")}
            progress.update(bar, completed=total - schedule.work_left, description=f"{counts['running']} running")
            if not quiet and not sys.stderr.isatty() and status.state in ("done", "failed"):
                click.echo(f"{counts['done']}/{len(statuses)} done; {status.name}: {status.state}", err=True)

        schedule.on_change = on_change
        progress.lines = RunningTasks(schedule).lines
        schedule.run(executor)


class RunningTasks:
    """Says in a line how each running task stands; of runs behind a URL nothing can be read."""

    def __init__(self, schedule: Schedule) -> None:
        filesystem, path = fsspec.core.url_to_fs(schedule.workplace.root)
        self.schedule, self.root = schedule, Path(path) if "file" in filesystem.protocol else None
        self.watchers: dict[str, Watcher] = {}
        self.said: Sequence[str] = ()
        self.looked = 0.0

    def lines(self) -> Sequence[str]:
        """Look at the runs again, where the last time was long enough ago."""
        if self.root is not None and time.monotonic() - self.looked > EVERY:
            said = []
            for name in [name for name, status in self.schedule.statuses.items() if status.state == "running"]:
                watcher = self.watchers.setdefault(name, Watcher(self.root / name, near=False))
                with suppress(InputError):  # it has not begun yet
                    said.append(watcher.look().line(name))
            self.said, self.looked = said, time.monotonic()
        return self.said
