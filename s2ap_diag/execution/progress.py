"""Progress on standard error, silent unless that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def plain_progress(quiet: bool) -> Progress:
    """Make a bar of steps done, with the time left."""
    return _progress(quiet, TextColumn("{task.completed:.0f}/{task.total:.0f}"))


def download_progress(quiet: bool) -> Progress:
    """Make a bar of bytes, with speed and time left."""
    return _progress(quiet, DownloadColumn(), TransferSpeedColumn())


def _progress(quiet: bool, *columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )


@contextmanager
def counting(description: str, total: int, quiet: bool) -> Iterator[Callable[..., None]]:
    """Show a bar over ``total`` steps; the block calls what it is given once for each, or with a part of one."""
    with plain_progress(quiet) as progress:
        task = progress.add_task(description, total=total)
        yield lambda part=1: progress.advance(task, part)
