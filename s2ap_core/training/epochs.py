"""What the epochs of a stage leave on disk: checkpoints, masks, metrics, and the state that a resume starts from."""

import logging
from pathlib import Path
from typing import Any

from s2ap_core.errors import InputError
from s2ap_core.files.header import peek
from s2ap_core.files.tensors import save_masks
from s2ap_core.masks.masking import masks
from s2ap_core.runs.checkpoints import describe, save_checkpoint
from s2ap_core.runs.course import TRAINED_STAGES
from s2ap_core.runs.directory import BRING_BACK, METRICS, TIMING, RunDirectory
from s2ap_core.training.loop import Loop, Selection
from s2ap_core.training.optimization import is_finite
from s2ap_core.training.state import load_state, save_state

log = logging.getLogger(__name__)


class Epochs:
    """The files of one stage of a run, epoch by epoch.

    Attributes:
        selection: which epoch the stage hands on.
    """

    def __init__(self, run: RunDirectory, loop: Loop, keep_checkpoints: int | None = None) -> None:
        """Prepare the files of a stage; ``keep_checkpoints`` as for :class:`s2ap_core.training.stages.Stages`."""
        self.run, self.loop, self.keep_checkpoints = run, loop, keep_checkpoints
        self.selection = Selection(loop.settings.select)

    def resume(self) -> bool:
        """Go back to the last epoch on disk, metrics included; return whether there is one.

        Raises:
            InputError: if the state is damaged, or of another stage.
        """
        state = self.run.state(self.loop.stage)
        resumed = state.exists()
        if resumed:
            load_state(state, self.loop, self.selection)
            self._drop_checkpoints()
        else:
            for callback in self.loop.callbacks:  # a process that resumes here has not seen the stage before
                callback.load_state_dict({})
        for file in ("metrics.csv", "timing.csv"):
            self.run.drop_rows(file, self.loop.stage, after=self.loop.epoch if resumed else -1)
        return resumed

    def end_epoch(self, seconds: float) -> None:
        """Validate and save the network that the epoch offers, and the state from which a resume goes on.

        Raises:
            InputError: if the network or its validation loss is not finite, or a file cannot be written.
        """
        loop = self.loop
        if not is_finite(loop.model):  # its last step may have been too far
            raise InputError(f"{loop.stage}: the network holds nan or inf after epoch {loop.epoch}; {loop.remedy()}")
        candidate = loop.candidate()
        validation = loop.validate(candidate)
        header = describe(self.run.config, loop.data, loop.stage, loop.epoch)
        if loop.method is not None:
            if loop.epoch:
                loop.method.end_epoch(loop.model, loop.epoch - 1)
            save_masks(self.run.masks(loop.epoch), masks(loop.model), header)
            save_checkpoint(self.run.checkpoint(f"prune-epoch-{loop.epoch:03d}"), loop.model, header)
        if self.selection.offer(loop.epoch, validation["val_loss"], validation["val_robust_accuracy"]):
            offered = header if loop.method is None else {**header, "at_budget": True}
            save_checkpoint(self.run.result(loop.stage), candidate, offered)
        metrics_bytes = self._append_metrics(validation)
        save_state(self.run.state(loop.stage), loop, self.selection, header, metrics_bytes)
        self._drop_checkpoints()
        if loop.epoch:
            self.run.append("timing.csv", TIMING, [(loop.stage, loop.epoch, round(seconds, 3))])

    def _append_metrics(self, validation: dict[str, float]) -> int:
        """Append the epoch's rows to ``metrics.csv``; return its length in bytes afterwards."""
        loop = self.loop
        rows: list[tuple[Any, ...]] = [("", name, value) for name, value in validation.items()]
        if loop.epoch:
            rows += [("", "train_loss", loop.loss), ("", "lr", loop.lr)]
        for callback in loop.callbacks:
            rows += callback.on_epoch(loop)
        readings = ", ".join(f"{name} {value:.4g}" for iteration, name, value in rows if iteration == "")
        log.info("%s: epoch %d of %d: %s", loop.stage, loop.epoch, loop.settings.epochs, readings)
        length = self.run.append("metrics.csv", METRICS, [(loop.stage, loop.epoch, *row) for row in rows])
        for callback in loop.callbacks:
            callback.on_recorded(loop, rows)
        return length

    def _drop_checkpoints(self) -> None:
        """Remove the search's checkpoints that are not to be kept; the state of their epochs is saved."""
        if self.keep_checkpoints is None or self.loop.stage != "prune":
            return
        for epoch in range(self.loop.epoch - self.keep_checkpoints + 1):
            self.run.checkpoint(f"prune-epoch-{epoch:03d}").unlink(missing_ok=True)


def check_metrics(run: RunDirectory) -> None:
    """Check that ``metrics.csv`` has the epochs that a stage's state was saved after: no resume makes them again.

    Raises:
        InputError: naming the epochs that are lost.
    """
    path, needed = run.path / "metrics.csv", 0
    expected: list[tuple[str, ...]] = []
    for stage in TRAINED_STAGES:
        epoch, length = saved_metrics(run.state(stage))
        needed = max(needed, length)
        expected += [(stage, str(number)) for number in range(stage != "prune", epoch + 1)]
    there = [tuple(row[:2]) for row in run.rows("metrics.csv")]
    lost = [key for key in expected if key not in there]
    if not lost and needed > (path.stat().st_size if path.exists() else 0):
        lost = there[-1:]  # in part
    if lost:
        stages = {stage: [number for of, number in lost if of == stage] for stage, _ in lost}
        said = ", ".join(f"{stage} {numbers[0]} to {numbers[-1]}" for stage, numbers in stages.items())
        raise InputError(f"{path}: missing or too short, lost are the epochs {said}; {BRING_BACK}")


def saved_metrics(state: Path) -> tuple[int, int]:
    """Read of a state's header its epoch and the length of ``metrics.csv`` then; (-1, 0) where there is none.

    A state that is damaged is refused where a stage goes on from it.
    """
    try:
        header = (peek(state) if state.exists() else None) or {}
        return int(header["epoch"]), int(header["metrics_bytes"])
    except (InputError, KeyError, TypeError, ValueError):
        return -1, 0
