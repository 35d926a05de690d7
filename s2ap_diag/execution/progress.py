"""Progress on standard error, silent unless that is a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class LinedProgress(Progress):
    """Bars, and lines of text below them.

    Attributes:
        lines: asked for the lines whenever they are drawn, in another thread than the work's.
    """

    lines: Callable[[], Sequence[str]] = staticmethod(lambda: ())

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the table of bars, and the lines."""
        yield from super().get_renderables()
        for line in self.lines():
            yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")


def plain_progress(quiet: bool) -> LinedProgress:
    """Make a bar of steps done, with the time left."""
    return _progress(quiet, TextColumn("{task.completed:.0f}/{task.total:.0f}"))


def download_progress(quiet: bool) -> LinedProgress:
    """Make a bar of bytes, with speed and time left."""
    return _progress(quiet, DownloadColumn(), TransferSpeedColumn())


def _progress(quiet: bool, *columns: ProgressColumn) -> LinedProgress:
    return LinedProgress(
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
