"""``s2ap-diag data``: download published data sets, and see what of them is there."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from s2ap_core.data import DATASETS
from s2ap_core.data.fetch import Part, check, fetch
from s2ap_core.errors import InputError
from s2ap_diag.commands._common import EXISTING, Output, make_table, plain_progress, table_options


@click.group(name="data")
def command() -> None:
    """Download published data sets, and see what of them is there."""


@command.command(name="fetch")
@click.argument("name")
@click.option("--root", type=EXISTING, required=True, help="Folder for all data sets; made if it is not there.")
@table_options
def fetch_command(name: str, root: Path, output: Output) -> None:
    """Download data set NAME into a folder, checksum and all; goes on where an earlier download broke off."""
    with download_progress(output.quiet) as bar:
        tasks: dict[str, Any] = {}

        def progress(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file)
            bar.update(tasks[file], completed=done, total=total)

        parts = fetch(name, root, progress)
    report({name: parts}, output)
    refuse_incomplete(name, parts)


@command.command(name="check")
@click.argument("name")
@click.option("--root", type=EXISTING, help="Folder that holds the data sets; digits needs none.")
@table_options
def check_command(name: str, root: Path | None, output: Output) -> None:
    """Say what of data set NAME, or of each with `all`, is there and what is missing, with counts.

    Exit status 2 if the data set is incomplete; with `all`, if one of those that are there is.
    """
    found: dict[str, list[Part]] = {}
    with plain_progress(output.quiet) as bar:
        for each in DATASETS if name == "all" else [name]:
            task = bar.add_task(each, total=None)
            found[each] = check(
                each,
                root,
                lambda done, total, task=task: bar.update(task, completed=done, total=total),  # type: ignore[misc]
            )
    report(found, output)
    for each, parts in found.items():
        if name != "all" or any(part.there for part in parts):
            refuse_incomplete(each, parts)


def report(found: dict[str, list[Part]], output: Output) -> None:
    """Show and write every part that was looked for."""
    records = [
        {"data": name, "part": part.name, "there": part.there, "images": part.images, "problem": part.problem}
        for name, parts in found.items()
        for part in parts
    ]
    columns = ("data", "part", "images", "state")
    table = make_table("Data sets", columns, [row for name in found for row in rows(name, found[name])])
    output.emit(records, table)


def rows(name: str, parts: Sequence[Part]) -> list[tuple[str, str, int | None, str]]:
    """The lines of the table for one data set: one only where nothing of it is there."""
    if not any(part.there for part in parts):
        return [(name, f"{len(parts)} files or folders", None, "missing")]
    states = [("missing" if not part.there else "broken") if part.problem else "there" for part in parts]
    return [(name, part.name, part.images, state) for part, state in zip(parts, states, strict=True)]


def refuse_incomplete(name: str, parts: Sequence[Part]) -> None:
    """Raise InputError with the first part that cannot be used, if there is one."""
    problems = [part.problem for part in parts if part.problem]
    if problems:
        raise InputError(f"{name}: {len(problems)} of {len(parts)} parts cannot be used; first {problems[0]}")


def download_progress(quiet: bool) -> Progress:
    """A bar in bytes with speed and time left, on standard error, silent unless that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
