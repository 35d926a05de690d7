"""Callbacks of a run: a progress bar for each stage, and a check for signals."""

from rich.progress import Progress

from s2ap_core.training.iteration import Step
from s2ap_core.training.loop import Callback, Loop
from s2ap_diag.execution.signals import raise_pending_signal


class SignalCheck(Callback):
    """Stop for a signal whose exception some code has swallowed."""

    def on_iteration(self, loop: Loop, step: Step) -> None:
        raise_pending_signal()

    def on_evaluated(self, done: int, total: int) -> None:
        raise_pending_signal()


class StageProgress(Callback):
    """Show a bar for each stage of a run."""

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
