"""What the commands share: options, tables, files, progress."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from s2ap_core import distributed
from s2ap_core.config import DataSettings
from s2ap_core.data import Dataset, load
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.iteration import Step
from s2ap_core.training.loop import Callback, Loop
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.files import open_checkpoint

EXISTING = click.Path(path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _set_up(ctx: click.Context, param: click.Parameter, quiet: bool) -> bool:
    del ctx, param
    quiet = quiet or distributed.rank() > 0  # the first process speaks for all
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.ERROR if quiet else logging.WARNING)
        handler.addFilter(Once())
    logging.addLevelName(logging.WARNING, "warning")
    # The attacks' library logs its own progress and warnings; ours are in Evaluation.warnings.
    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)
    return quiet


quiet_option = click.option(
    "--quiet", is_flag=True, callback=_set_up, expose_value=True, help="No table, progress or warnings."
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Random seed.")


class Once:
    """Lets a warning onto the console once, whichever stage, checkpoint or batch it is about.

    What is warned of is a record's last argument, else its message. Python's own warnings, which dependencies
    give and a user can do nothing about, are not shown; a run's log has them.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        what = str(record.args[-1] if isinstance(record.args, tuple) and record.args else record.msg)
        new = what not in self.seen
        self.seen.add(what)
        return new and record.name != "py.warnings"


@dataclass(frozen=True)
class Output:
    """Where results go; ``plot`` is for the command to draw."""

    json: str | None
    csv: Path | None
    plot: Path | None
    quiet: bool

    def emit(self, records: Sequence[dict[str, Any]], table: Table) -> None:
        """Show a table and write the records; with JSON on standard output, nothing else goes there."""
        if distributed.rank():
            return
        if self.csv is not None:
            write_file(self.csv, to_csv(pd.json_normalize(list(records))))
        if self.json is not None:
            text = json.dumps(list(records), indent=2, default=str)
            if self.json == "-":
                click.echo(text)
                return
            write_file(Path(self.json), text + "\n")
        show_table(table, self.quiet)


@dataclass(frozen=True)
class Source:
    """What a user adds to checkpoints of other tools, which do not say it themselves."""

    keep: float | None
    network: str | None
    dataset: str | None
    root: Path | None

    def open(self, path: Path, device: str = "cpu") -> Checkpoint:
        """The checkpoint, ours or another tool's.

        Raises:
            InputError: if it cannot be used, or does not say what no option says.
        """
        return open_checkpoint(path, network=self.network, dataset=self.dataset, keep=self.keep, device=device)

    def data(self, checkpoint: Checkpoint) -> Dataset:
        """The data that a checkpoint was made with: the option's, or its file's and its run's own.

        Raises:
            InputError: if neither says which, or the files cannot be used.
        """
        run = checkpoint.path.parent.parent
        settings = RunDirectory.open(run).config.data if (run / "config.toml").is_file() else DataSettings()
        name = self.dataset or checkpoint.header.get("dataset")
        if name is None:
            raise InputError(f"{checkpoint.path}: does not say its data set; give --dataset")
        if name != settings.name:
            return load(name, self.root)
        return load(name, self.root or settings.root, **settings.options)


def _bundle(name: str, kind: type, *options: Decorator) -> Decorator:
    """Options that reach the command as one argument ``name``, a dataclass ``kind`` with a field for each."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        def bundled(*args: Any, **kwargs: Any) -> Any:
            values = {field.name: kwargs.pop(field.name, None) for field in fields(kind)}
            return function(*args, **{name: kind(**values)}, **kwargs)

        call: Callable[..., Any] = functools.wraps(function)(bundled)
        for option in reversed(options):
            call = option(call)
        return call

    return apply


_table_options = (
    click.option("--json", type=click.Path(), help="Write the results as JSON; - is standard output."),
    click.option("--csv", type=EXISTING, help="Write the results as CSV."),
    quiet_option,
)
table_options = _bundle("output", Output, *_table_options)
_plot_option = click.option("--plot", type=EXISTING, help="Draw the results (.png, .pdf or .svg).")
output_options = _bundle("output", Output, *_table_options, _plot_option)
source_options = _bundle(
    "source",
    Source,
    click.option("--keep", type=float, help="Fraction kept, where the file does not say it."),
    click.option("--network", help="The network, where the file does not say it."),
    click.option("--dataset", help="The data set, where the file does not say it."),
    click.option("--root", type=EXISTING, help="Folder of the data set's published files."),
)


def check_device(device: str) -> str:
    """The device if it is there; with several processes and ``cuda``, this one's.

    Raises:
        InputError: if it is not a device, or not one of this machine's.
    """
    device = distributed.device_of(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device}: not available on this machine; use --device cpu, or as many processes as GPUs"
        ) from error
    return device


def show_table(table: Table, quiet: bool = False) -> None:
    """Print a table unless nothing is to be printed."""
    if not quiet:
        Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of strings and numbers, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(show, row))
    return table


def show(value: Any) -> str:
    """A cell: four significant digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def plain_progress(quiet: bool) -> Progress:
    """A bar with the time left, on standard error, silent unless that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


@contextmanager
def counting(description: str, total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A progress bar over ``total`` steps; the block calls what it is given once for each."""
    with plain_progress(quiet) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


class StageProgress(Callback):
    """A bar for each stage of a run."""

    def __init__(self, progress: Progress, name: str = "") -> None:
        self.progress, self.name = progress, name
        self.task = progress.add_task(name, visible=False)

    def on_stage(self, loop: Loop) -> None:
        self.progress.reset(
            self.task,
            description=f"{self.name} {loop.stage}".strip(),
            total=loop.settings.epochs * loop.iterations_per_epoch,
            completed=loop.epoch * loop.iterations_per_epoch,
            visible=True,
        )

    def on_iteration(self, loop: Loop, step: Step) -> None:
        self.progress.advance(self.task)

    def on_evaluated(self, done: int, total: int) -> None:
        self.progress.update(
            self.task, description=f"{self.name} evaluate".strip(), completed=done, total=total, visible=True
        )
