"""``s2ap-diag estimate``: time and disk space of a grid of runs, before it is started."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import make_table
from s2ap_diag.sweep.estimate import disk, seconds, seconds_per_mac, wall
from s2ap_diag.sweep.grid import expand, read_grid
from s2ap_diag.sweep.plan import plan


def run_command(
    grid: str, gpus: str, benchmark: Path | None, scale: str | None, overrides: tuple[str, ...], output: Output
) -> None:
    """Add up what the tasks of a grid take, and show it by network."""
    try:
        devices = [int(number) for number in gpus.split(",")]
        if min(devices) < 1:
            raise ValueError
    except ValueError as error:
        raise click.UsageError(f"--gpus {gpus}: give numbers of at least 1, such as 1,8,64") from error
    tasks = plan(expand(read_grid(grid), scale=scale, overrides=overrides))
    rates = seconds_per_mac(benchmark)
    cost = {task.name: seconds(task, rates) for task in tasks}
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
        }
        for (data, network), group in by_network.items()
    ]
    total = {key: sum(record[key] for record in records) for key in ("runs", "shared", "hours", "gigabytes")}
    walls = {number: wall(tasks, cost, number) / 86400 for number in devices}
    records.append({"data": "all", "network": "", **total, "days": {str(n): days for n, days in walls.items()}})
    basis = str(benchmark) if benchmark else "the paper's Table 7 (A6000, published code)"
    said = ", ".join(f"{days:.3g} days on {number}" for number, days in walls.items())
    columns = ["data", "network", "runs", "shared parts", "device hours", "GB"]
    keys = ("data", "network", "runs", "shared", "hours", "gigabytes")
    table = make_table(f"{grid}, by {basis}: {said}", columns, [[record[key] for key in keys] for record in records])
    output.emit(records, table)
