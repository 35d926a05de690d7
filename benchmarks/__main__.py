"""``python -m benchmarks``."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row, Setting, code, machine
from benchmarks.suite import BENCHMARKS, UNUSUAL
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.files.record import load_json


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Some, by name.")
@click.option("--quick", is_flag=True, help="Narrow networks and small batches: shows that all runs, not how fast.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--resume", is_flag=True, help="Go on with the suite that --json holds, of this machine and size.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; as many as torch takes by default.")
def main(
    only: tuple[str, ...], quick: bool, json_file: Path | None, resume: bool, device: str, threads: int | None
) -> None:
    """Measure ratios of time and memory here, beside their goals; benchmarks/README.md says how to read them."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch finds no GPU here", param_hint="--device")
    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(device, torch.get_num_threads(), quick)
    if resume and json_file is None:
        raise click.UsageError("--resume: give the file to go on with as --json FILE")
    names = only or [name for name in BENCHMARKS if name not in UNUSUAL[device]]
    try:
        _run(names, setting, json_file, resume=resume)
    except InputError as error:
        raise click.ClickException(str(error)) from error


def _run(names: Sequence[str], setting: Setting, json_file: Path | None, *, resume: bool) -> None:
    facts, console = machine(setting) | {"code": code()}, Console()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    records = _measured_before(json_file, facts, setting, names) if resume and json_file is not None else []
    done = {record["benchmark"] for record in records}
    for name in names:
        if name in done:
            console.print(f"{name}: measured before")
            continue
        started = time.perf_counter()
        with console.status(name):
            rows = BENCHMARKS[name](setting)
        seconds = round(time.perf_counter() - started)
        if setting.quick:  # goals are for the sizes of the full suite
            rows = [replace(row, goal=None) for row in rows]
        console.print(_table(f"{name}, measured in {seconds} s", rows))
        records += [{"benchmark": name, "benchmark_seconds": seconds, **row.record()} for row in rows]
        if json_file is not None:  # after each, so that an interrupted suite leaves what it measured
            report = {"machine": facts, "quick": setting.quick, "rows": records}
            write_file(json_file, json.dumps(report, indent=2) + "\n")


def _measured_before(file: Path, facts: Mapping[str, Any], setting: Setting, names: Sequence[str]) -> list[Any]:
    """Read the rows of an interrupted suite; none of one that has ended, which begins anew.

    Raises:
        InputError: if it is of another machine, size or version of the code, or no suite.
    """
    if not file.exists():
        return []
    report = load_json(file, dict, "remove it, or name another file")
    rows = report.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "benchmark" in row for row in rows):
        raise InputError(f"{file}: no figures of a suite; remove it, or name another file")
    if set(names) <= {row["benchmark"] for row in rows}:
        return []
    steady = [{k: v for k, v in of.items() if k != "load_before"} for of in (facts, report.get("machine") or {})]
    if report.get("quick") != setting.quick or steady[0] != steady[1]:
        raise InputError(f"{file}: of another machine, size or code; remove it, or name another file")
    return rows


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("goal", justify="right", no_wrap=True)
    table.add_column("behind it")
    for row in rows:
        met = row.goal is not None and row.goal.met_by(row.value)
        goal = "" if row.goal is None else f"{row.goal} {'met' if met else 'missed'}"
        table.add_row(row.name, f"{row.value:#.3g}".rstrip(".") + f" {row.unit}", goal, row.detail)
    return table


if __name__ == "__main__":
    main()
