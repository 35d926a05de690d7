"""``s2ap-diag estimate``: time, memory and disk space of a run or a grid of runs, before it is started."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from s2ap_core.config import Config
from s2ap_core.errors import InputError, did_you_mean
from s2ap_core.presets.compose import grid_names, presets
from s2ap_core.presets.read import read_run
from s2ap_core.runs import course
from s2ap_core.runs.disk import bytes_of_run
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import make_table
from s2ap_diag.sweep.estimate import (
    IMAGES,
    disk,
    images_of,
    macs_of_a_pass,
    seconds,
    stages,
    wall,
)  # fmt: skip
from s2ap_diag.sweep.grid import Grid, expand, is_grid, read_grid
from s2ap_diag.sweep.memory import memory_of
from s2ap_diag.sweep.plan import plan
from s2ap_diag.sweep.rates import Rates, rates_of

ASSUMED = (
    "Assumed: a backward pass is two forward ones; masked weights are multiplied like others; optimizer, masks, loading"
    " and saving take no time; half of the test images are left for an evaluation's later attacks; a network that the"
    " times do not know counts as the slowest."
)


def run_command(
    source: str,
    device: str,
    benchmark: Path | None,
    gpus: str,
    scale: str | None,
    overrides: tuple[str, ...],
    output: Output,
) -> None:
    """Estimate a grid, or a run's config."""
    if is_grid(source):
        return _grid(read_grid(source), source, (device, benchmark), gpus, scale, overrides, output)
    if not Path(source).is_file() and source not in presets():
        lists = "see `s2ap-diag run --list` and `s2ap-diag sweep --list`"
        hint = did_you_mean(source, [*presets(), *grid_names()], lists)
        raise InputError(f"{source}: neither a file, a preset nor a grid; {hint}")
    config = read_run(source, scale, overrides)
    _run(config, source, rates_of(device, benchmark, [config]), output)


def _run(config: Config, source: str, rates: Rates, output: Output) -> None:
    """Show a run by stage."""
    macs, per_mac = macs_of_a_pass(config), rates.of(config.network.name)
    trained: dict[str, int] = {stage: len(course.epochs(config, stage)) for stage in course.trained(config)}
    records: list[dict[str, Any]] = [
        {
            "stage": stage,
            "epochs": trained.get(stage),
            "passes": passes,
            "petaflop": 2 * macs * passes / 1e15,
            "hours": macs * passes * per_mac / 3600,
        }
        for stage, passes in stages(config).items()
    ]
    images = images_of(config)
    total = {key: sum(record[key] for record in records) for key in ("passes", "petaflop", "hours")}
    memory, space = memory_of(config, images) / 1e9, bytes_of_run(config, images) / 1e9
    records.append({"stage": "all", "epochs": None, **total, "memory_gigabytes": memory, "disk_gigabytes": space})
    columns = ["stage", "epochs", "passes of an image", "PFLOP", "hours"]
    rows = [[record[key] for key in ("stage", "epochs", "passes", "petaflop", "hours")] for record in records]
    said = f"{_time(total['hours'] / 24)}, up to {memory:.2g} GB of memory for tensors, {space:.2g} GB on disk"
    table = make_table(f"{source}, by {rates.basis}: {said}", columns, rows)
    output.emit(records, table, notes=filter(None, (config.title, _assumed(config))))


def _time(days: float) -> str:
    """Write a time in the largest unit that it has at least two of, seconds if none."""
    unit, of_a_day = next(
        ((u, n) for u, n in (("days", 1), ("hours", 24), ("minutes", 1440)) if days * n >= 2), ("s", 86400)
    )
    return f"{days * of_a_day:.3g} {unit}"


def _assumed(config: Config) -> str:
    name = config.data.name
    return ASSUMED if name in IMAGES else f"{ASSUMED} Images of {name} are counted as CIFAR-10's."


def _grid(
    grid: Grid,
    source: str,
    kind: tuple[str, Path | None],
    gpus: str,
    scale: str | None,
    overrides: tuple[str, ...],
    output: Output,
) -> None:
    """Add up what the tasks of a grid take, and show it by network."""
    try:
        devices = [int(number) for number in gpus.split(",")]
        if min(devices) < 1:
            raise ValueError
    except ValueError as error:
        raise click.UsageError(f"--gpus {gpus}: give numbers of at least 1, such as 1,8,64") from error
    tasks = plan(expand(grid, scale=scale, overrides=overrides))
    rates = rates_of(*kind, (task.config for task in tasks))
    cost = {task.name: seconds(task, rates.of(task.config.network.name)) for task in tasks}
    by_network: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for task in tasks:
        by_network[task.config.data.name, task.config.network.name].append(task)
    records: list[dict[str, Any]] = [
        {
            "data": data,
            "network": network,
            "runs": sum(task.until == "end" for task in group),
            "shared": sum(task.until != "end" for task in group),
            "hours": sum(cost[task.name] for task in group) / 3600,
            "gigabytes": sum(map(disk, group)) / 1e9,
            "memory_gigabytes": max(memory_of(task.config, images_of(task.config)) for task in group) / 1e9,
        }
        for (data, network), group in by_network.items()
    ]
    total = {key: sum(record[key] for record in records) for key in ("runs", "shared", "hours", "gigabytes")}
    memory = {"memory_gigabytes": max(record["memory_gigabytes"] for record in records)}
    walls = {number: wall(tasks, cost, number) / 86400 for number in devices}
    days = {"days": {str(number): days for number, days in walls.items()}}
    records.append({"data": "all", "network": "", **total, **memory, **days})
    said = ", ".join(f"{_time(days)} on {number}" for number, days in walls.items())
    columns = ["data", "network", "runs", "shared parts", "device hours", "GB on disk", "GB of memory, up to"]
    keys = ("data", "network", "runs", "shared", "hours", "gigabytes", "memory_gigabytes")
    table = make_table(
        f"{source}, by {rates.basis}: {said}", columns, [[record[key] for key in keys] for record in records]
    )
    output.emit(records, table, notes=[ASSUMED])
