"""``s2ap-diag sweep``: a grid of runs, on this machine or on a Ray cluster."""

import logging
import os
import sys
import time
from concurrent.futures import Executor
from typing import Any

import click
import fsspec
import torch
from rich.console import Group as Stack
from rich.live import Live
from rich.table import Table

from s2ap_core.errors import InputError
from s2ap_diag.commands._common import check_device, device_option, make_table, plain_progress, quiet_option, show_table
from s2ap_diag.commands.run import check_given, prepare
from s2ap_diag.execution.signals import resumable
from s2ap_diag.sweep.executors import LocalExecutor, RayExecutor, fitting_workers, memory_of
from s2ap_diag.sweep.grid import expand, grids, read_grid
from s2ap_diag.sweep.plan import Task, plan
from s2ap_diag.sweep.schedule import Entry, Schedule, read_status
from s2ap_diag.sweep.tasks import Place

scale_option = click.option(
    "--scale", type=click.Choice(["digits"]), help="Every run narrow and short, on scikit-learn's digits."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of every run."
)


@click.command(name="sweep")
@click.argument("grid", required=False)
@click.option("--runs", "root", help="Folder of the runs, or an fsspec URL of it.  [default: runs/GRID]")
@click.option("--list", "list_grids", is_flag=True, help="List the grids that come with the package.")
@click.option("--dry-run", is_flag=True, help="Show what would run and what is done, and run nothing.")
@click.option("--status", is_flag=True, help="Show how the sweep in --runs stands, live on a terminal.")
@scale_option
@set_option
@click.option("--workers", type=click.IntRange(min=1), help="Runs at once.  [default: as many as fit]")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on this Ray cluster, e.g. auto or host:6379.")
@click.option(
    "--gpus-per-run", default=0.0, type=click.FloatRange(min=0), help="GPUs that a run takes; fractions share one."
)
@device_option
@quiet_option
def command(
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
    """Run GRID, a TOML file or one of --list, each run once; called again, do what is missing or failed.

    What several runs begin with, such as a dense network, is done once. Exit status 1 if a run failed.
    """
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
        show_table(planned(Schedule(tasks, Place(root), 1)))
        return None
    if address is None:
        check_device(device)
    for task in tasks:
        check_given(task.config)
    executor, workers, threads = resources(tasks, workers, address, gpus_per_run, device)
    schedule = Schedule(tasks, Place(root, device, threads), workers)
    with resumable("the same command"), plain_progress(quiet) as progress:
        total = sum(entry.work for entry in schedule.entries.values())
        bar = progress.add_task("sweep", total=total, completed=int(total - schedule.work_left))

        def on_change(entry: Entry) -> None:
            entries = schedule.entries.values()
            counts = {state: sum(other.state == state for other in entries) for state in ("running", "done")}
            progress.update(bar, completed=total - schedule.work_left, description=f"{counts['running']} running")
            if not quiet and not sys.stderr.isatty() and entry.state in ("done", "failed"):
                click.echo(f"{counts['done']}/{len(entries)} done; {entry.name}: {entry.state}", err=True)

        schedule.on_change = on_change
        schedule.run(executor)
    show_table(summary(root, schedule), quiet)
    for entry in schedule.failed:
        click.echo(f"failed: {entry.name}: {entry.error} (log: {root}/{entry.log})", err=True)
    return 1 if schedule.failed else 0


def resources(
    tasks: list[Task], workers: int | None, address: str | None, gpus_per_run: float, device: str
) -> tuple[Executor, int, int]:
    """Who runs the tasks, how many at once, and with how many threads each: ``OMP_NUM_THREADS``, or what there is.

    Raises:
        InputError: if there is no such cluster, or fewer GPUs than a run takes.
    """
    if gpus_per_run and device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: with --gpus-per-run give --device cuda")
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() and int(asked) else None
    if address is not None:
        cluster = RayExecutor(address, cpus=threads or 1, gpus=gpus_per_run)
        return cluster, workers or cluster.slots(), threads or 1
    cores = cpu_cores()
    if device.startswith("cuda") and gpus_per_run:
        slots = gpu_slots(gpus_per_run)[:workers]
        return LocalExecutor(len(slots), slots), len(slots), threads or max(1, cores // len(slots))
    if workers is None:
        settings = {(t.config.data.name, t.config.network.name, t.config.network.width): t.config for t in tasks}
        largest = max(memory_of(config, prepare(config)) for config in settings.values())
        workers = min(fitting_workers(largest, cores), len(tasks)) if device == "cpu" else 1
    return LocalExecutor(workers), workers, threads or max(1, cores // workers)


def gpu_slots(gpus_per_run: float) -> list[str]:
    """``CUDA_VISIBLE_DEVICES`` for each worker, of the GPUs that are visible here.

    Raises:
        InputError: if there are fewer GPUs than a run takes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    per_gpu = int(1 / gpus_per_run) if gpus_per_run < 1 else 1
    whole = max(1, int(gpus_per_run))
    groups = [",".join(names[i : i + whole]) for i in range(0, len(names) - whole + 1, whole)]
    if not groups:
        raise InputError(f"--gpus-per-run {gpus_per_run:g}: {len(names)} GPUs are visible")
    return [group for group in groups for _ in range(per_gpu)]


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def absolute(root: str) -> str:
    """A local folder by its whole path, since the nodes of a cluster work in folders of their own; URLs as they are."""
    filesystem, path = fsspec.core.url_to_fs(root)
    return str(path) if "file" in filesystem.protocol else root


def planned(schedule: Schedule) -> Table:
    """What would run, in order."""
    rows: list[list[Any]] = [
        [task.name, task.until, task.after or "", schedule.entries[task.name].state] for task in schedule.tasks
    ]
    waiting = sum(entry.state == "waiting" for entry in schedule.entries.values())
    title = f"{len(rows)} tasks, {waiting} to do"
    return make_table(title, ["task", "until", "goes on from", "state"], rows)


def summary(root: str, schedule: Schedule) -> Table:
    """How many tasks ended how."""
    entries = list(schedule.entries.values())
    rows: list[list[Any]] = [
        [state, sum(entry.state == state for entry in entries), sum(e.seconds for e in entries if e.state == state)]
        for state in ("done", "failed")
    ]
    return make_table(root, ["state", "tasks", "seconds in this sweep"], rows)


def watch(root: str) -> None:
    """Show the state of a sweep; on a terminal until it ends or the user does."""
    found = read_status(root)
    if not sys.stdout.isatty():
        show_table(status_table(root, found))
        return
    with Live(status_table(root, found), refresh_per_second=2) as live:
        while any(task["state"] in ("waiting", "running") for task in found["tasks"]):
            time.sleep(1)
            found = read_status(root)
            live.update(Stack(status_table(root, found)))


def status_table(root: str, found: dict[str, Any]) -> Table:
    """Counts by state, the tasks that run, and those that failed."""
    tasks = found["tasks"]
    counts = {s: sum(t["state"] == s for t in tasks) for s in ("done", "running", "waiting", "failed")}
    left = "unknown" if found["left"] is None else f"{found['left'] / 60:.0f} min"
    if not found["working"]:
        left = "no sweep is at it, the same command goes on" if counts["waiting"] + counts["running"] else "none"
    title = f"{root}: " + ", ".join(f"{count} {state}" for state, count in counts.items()) + f"; time left: {left}"
    shown = [t for t in tasks if t["state"] in ("running", "failed")]
    rows: list[list[Any]] = [[t["name"], t["state"], t["error"] or t["log"]] for t in shown]
    return make_table(title, ["task", "state", "error or log"], rows)


logging.getLogger("ray").setLevel(logging.ERROR)
