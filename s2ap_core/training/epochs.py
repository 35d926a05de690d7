"""What the epochs of a stage leave on disk: checkpoints, masks, metrics, and the state that a resume starts from."""

import logging
from typing import Any

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import save_masks
from s2ap_core.masks.masking import masks
from s2ap_core.runs.checkpoints import describe, save_checkpoint
from s2ap_core.runs.course import TRAINED_STAGES
from s2ap_core.runs.directory import METRICS, TIMING, RunDirectory
from s2ap_core.training.loop import Loop, Selection
from s2ap_core.training.optimization import is_finite
from s2ap_core.training.state import load_state, read_metrics_bytes, save_state

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
        if not state.exists():
            self.run.truncate("metrics.csv", self._metrics_of_earlier_stages())
            for callback in self.loop.callbacks:  # a process that resumes here has not seen the stage before
                callback.load_state_dict({})
            return False
        self.run.truncate("metrics.csv", load_state(state, self.loop, self.selection))
        self._drop_checkpoints()
        return True

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
        return self.run.append("metrics.csv", METRICS, [(loop.stage, loop.epoch, *row) for row in rows])

    def _metrics_of_earlier_stages(self) -> int:
        """Count the bytes of ``metrics.csv`` that belong to the stages before this one."""
        before = TRAINED_STAGES[: TRAINED_STAGES.index(self.loop.stage)]
        states = [path for path in map(self.run.state, before) if path.exists()]
        return max(map(read_metrics_bytes, states), default=0)

    def _drop_checkpoints(self) -> None:
        """Remove the search's checkpoints that are not to be kept; the state of their epochs is saved."""
        if self.keep_checkpoints is None or self.loop.stage != "prune":
            return
        for epoch in range(self.loop.epoch - self.keep_checkpoints + 1):
            self.run.checkpoint(f"prune-epoch-{epoch:03d}").unlink(missing_ok=True)
