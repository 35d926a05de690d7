"""Callbacks of a run: a progress bar for each stage, and a check for signals."""

from contextlib import suppress
from pathlib import Path

from s2ap_core.errors import InputError
from s2ap_core.training.iteration import Step
from s2ap_core.training.loop import Callback, Loop
from s2ap_diag.execution.progress import LinedProgress
from s2ap_diag.execution.signals import raise_pending_signal
from s2ap_diag.reading.snapshot import Watcher


class SignalCheck(Callback):
    """Stop for a signal whose exception some code has swallowed."""

    def on_iteration(self, loop: Loop, step: Step) -> None:
        raise_pending_signal()

    def on_evaluated(self, done: int, total: int) -> None:
        raise_pending_signal()


class StageProgress(Callback):
    """Show a bar for each stage of a run, and below it the last epoch's readings."""

    def __init__(self, progress: LinedProgress, run: Path, name: str = "") -> None:
        self.progress, self.name, self.watcher, self.line = progress, name, Watcher(run, near=False), ""
        self.task = progress.add_task(name, visible=False)
        progress.lines = lambda: [self.line] if self.line else []

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
        if loop.iteration == 0 and not self.progress.disable:
            with suppress(InputError):  # whatever a file is like, the run goes on
                self.line = self.watcher.look().line()

    def on_evaluated(self, done: int, total: int) -> None:
        self.progress.update(
            self.task, description=f"{self.name} evaluate".strip(), completed=done, total=total, visible=True
        )
