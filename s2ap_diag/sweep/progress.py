"""A schedule run under a progress bar."""

import sys
from concurrent.futures import Executor

import click

from s2ap_diag.execution.progress import plain_progress
from s2ap_diag.execution.signals import resumable
from s2ap_diag.sweep.schedule import Schedule, TaskStatus


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
        schedule.run(executor)
