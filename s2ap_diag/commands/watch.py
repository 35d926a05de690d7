"""``s2ap-diag watch``: how runs stand, from another terminal."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from s2ap_core.errors import InputError
from s2ap_diag.comparison.conditions import Material, check
from s2ap_diag.comparison.evidence import gather
from s2ap_diag.output.live import panel, table_of
from s2ap_diag.reading.files import told_apart
from s2ap_diag.reading.results import open_run, run_folders
from s2ap_diag.reading.snapshot import Snapshot, Watcher
from s2ap_diag.sweep.schedule import STATUS, read_status

EVERY = 1.0
"""Seconds between two looks."""


def run_command(runs: Path) -> None:
    """Show how runs stand; on a terminal until none of them goes on."""
    view = OfRun(runs) if (runs / "config.toml").is_file() else OfRuns(runs)
    console = Console(width=shutil.get_terminal_size().columns, markup=False, emoji=False)
    shown = view.look()
    if not sys.stdout.isatty():
        console.print(shown)
        return
    with Live(shown, console=console, refresh_per_second=4) as live:
        while view.working:
            time.sleep(EVERY)
            live.update(view.look())


class Warnings:
    """What ``check`` says of a run by now, asked anew where its files have changed."""

    def __init__(self) -> None:
        self.stamp: tuple[int, ...] = ()
        self.said: list[str] = []

    def of(self, run: Path) -> list[str]:
        """Name each condition that fails, with its remedy."""
        files = [run / name for name in ("metrics.csv", "results.json")]
        stamp = tuple(file.stat().st_mtime_ns for file in files if file.is_file())
        if stamp != self.stamp:
            try:
                findings = check(Material([gather(open_run(run, unfinished=True))]))
                self.said = [f"{one.condition}: {one.remedy}" for one in findings if not one.passed]
            except InputError as error:
                self.said = [str(error)]
            self.stamp = stamp
        return self.said


class OfRun:
    """A run by itself: its curves, and warnings."""

    def __init__(self, run: Path) -> None:
        self.watcher, self.warnings, self.working = Watcher(run), Warnings(), True

    def look(self) -> RenderableType:
        """Look at it again."""
        snapshot = self.watcher.look()
        self.working = snapshot.state == "running"
        return panel(snapshot, self.warnings.of(snapshot.path))


@dataclass
class OfRuns:
    """A folder of runs: a line for each that is not complete; warnings of these and of those that end meanwhile.

    Raises:
        InputError: when it is first looked at, if it holds no run.
    """

    folder: Path
    working: bool = True
    watchers: dict[Path, Watcher] = field(default_factory=dict)
    warnings: dict[Path, Warnings] = field(default_factory=dict)
    complete: dict[Path, Snapshot] = field(default_factory=dict)

    def look(self) -> RenderableType:
        """Look at all that have not ended, and for new ones."""
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder; name a run or a folder of runs")
        status = read_status(str(self.folder)) if (self.folder / STATUS).is_file() else None
        shared = [task.name for task in status.tasks if task.state == "running"] if status else []
        paths = [*run_folders(self.folder), *(self.folder / name for name in shared)]
        found, unreadable = self._look(list(dict.fromkeys(paths)))
        if not (found or unreadable or status):
            raise InputError(f"{self.folder}: holds no run; name a run or a folder of runs")
        counts = Counter(one.state for one in found)
        said = [f"{counts[state]} {state}" for state in ("running", "stopped", "done") if counts[state]]
        if status:
            tasks = Counter(task.state for task in status.tasks)
            said += [f"{tasks[state]} {state}" for state in ("waiting", "failed") if tasks[state]]
            if status.working and status.left is not None:
                said.append(f"{status.left / 60:.0f} min left")
        self.working = counts["running"] > 0 or bool(status and status.working)
        names = told_apart([one.path for one in found])
        table = [table_of(found, names, f"{self.folder}: {', '.join(said)}")] if found else []
        warned = [f"{name}: {text}" for name, one in zip(names, found, strict=True) for text in self._warnings(one)]
        return Group(*table, *(Text(f"warning: {text}") for text in [*warned, *map(str, unreadable)]))

    def _look(self, paths: Sequence[Path]) -> tuple[list[Snapshot], list[InputError]]:
        found, unreadable = [], []
        for path in paths:
            try:
                one = self.complete.get(path) or self.watchers.setdefault(path, Watcher(path, near=False)).look()
            except InputError as error:
                if (path / "config.toml").is_file():  # else a task is about to begin it
                    unreadable.append(error)
                continue
            if one.state == "done":
                self.complete[path] = one
            else:
                self.warnings.setdefault(path, Warnings())
            found.append(one)
        return found, unreadable

    def _warnings(self, one: Snapshot) -> list[str]:
        return self.warnings[one.path].of(one.path) if one.path in self.warnings else []
