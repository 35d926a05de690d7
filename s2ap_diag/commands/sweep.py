"""``s2ap-diag sweep``: a grid of runs, on this machine or on a Ray cluster."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import click
from rich.live import Live

from s2ap_core.errors import printable
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.execute import check_dense_network
from s2ap_diag.output.tables import Table, count, make_table, show_table
from s2ap_diag.sweep.grid import expand, grids, read_grid
from s2ap_diag.sweep.plan import Task, plan
from s2ap_diag.sweep.progress import run_schedule
from s2ap_diag.sweep.resources import absolute, resources
from s2ap_diag.sweep.schedule import Schedule, SweepStatus, read_status
from s2ap_diag.sweep.tasks import Workplace, is_done


def run_command(
    grid: str | None,
    root: str | None,
    list_grids: bool,
    dry_run: bool,
    status: bool,
    scale: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    address: str | None,
    gpus_per_run: float,
    device: str,
    quiet: bool,
) -> int | None:
    """Run a grid, or show how it stands; return the exit status."""
    if list_grids:
        show_table(make_table("grids", ["grid", "what it is"], [list(item) for item in grids().items()]))
        return None
    if status:
        if root is None:
            raise click.UsageError("--status needs --runs, the folder of the sweep")
        watch(root)
        return None
    if grid is None:
        raise click.UsageError("name a GRID; `s2ap-diag sweep --list` shows those that come with the package")
    root = root or f"runs/{grid.rpartition('/')[2].removesuffix('.toml')}" + (f"-{scale}" if scale else "")
    root = absolute(root)
    tasks = plan(expand(read_grid(grid), scale=scale, overrides=overrides))
    if dry_run:
        show_table(planned(tasks, root))
        return None
    if address is None:
        check_device(device)
    for task in tasks:
        check_dense_network(task.config)
    executor, workers, threads = resources(tasks, workers, address, gpus_per_run, device)
    schedule = Schedule(tasks, Workplace(root, device, threads), workers)
    run_schedule(schedule, executor, "the same command", quiet=quiet)
    show_table(summary(root, schedule), quiet)
    for entry in schedule.failed:
        click.echo(printable(f"failed: {entry.name}: {entry.error} (log: {root}/{entry.log})"), err=True)
    return 1 if schedule.failed else 0


MOST_ROWS = 500
"""Tasks that are listed; the names of more take longer to lay out than the sweep to plan."""


def planned(tasks: Sequence[Task], root: str) -> Table:
    """List what would run, in order, and how much it is in all."""
    states = ["done" if is_done(task, root) else "waiting" for task in tasks]
    rows: list[list[Any]] = [
        [task.name, task.until, task.after or "", state] for task, state in zip(tasks[:MOST_ROWS], states, strict=False)
    ]
    title = f"{count(len(tasks), 'task')}, {states.count('waiting'):,} to do"
    if len(tasks) > MOST_ROWS:
        title += f"; the first {MOST_ROWS:,}"
    return make_table(title, ["task", "until", "goes on from", "state"], rows)


def summary(root: str, schedule: Schedule) -> Table:
    """Count the tasks that are done and those that failed."""
    statuses = list(schedule.statuses.values())
    rows: list[list[Any]] = [
        [state, sum(entry.state == state for entry in statuses), sum(e.seconds for e in statuses if e.state == state)]
        for state in ("done", "failed")
    ]
    return make_table(root, ["state", "tasks", "seconds in this sweep"], rows)


def watch(root: str) -> None:
    """Show the state of a sweep; on a terminal until it ends or the user does."""
    status = read_status(root)
    if not sys.stdout.isatty():
        show_table(status_table(root, status))
        return
    with Live(status_table(root, status), refresh_per_second=2) as live:
        while any(task.state in ("waiting", "running") for task in status.tasks):
            time.sleep(1)
            status = read_status(root)
            live.update(status_table(root, status))


def status_table(root: str, status: SweepStatus) -> Table:
    """Count the tasks by state, and list those that run or failed."""
    tasks = status.tasks
    counts = {s: sum(t.state == s for t in tasks) for s in ("done", "running", "waiting", "failed")}
    left = "unknown" if status.left is None else f"{status.left / 60:.0f} min"
    if not status.working:
        left = "no sweep is at it, the same command goes on" if counts["waiting"] + counts["running"] else "none"
    title = f"{root}: " + ", ".join(f"{count} {state}" for state, count in counts.items()) + f"; time left: {left}"
    shown = [t for t in tasks if t.state in ("running", "failed")]
    rows: list[list[Any]] = [[t.name, t.state, t.error or t.log] for t in shown]
    return make_table(title, ["task", "state", "error or log"] if rows else [], rows)
