"""Follow a search that is not ours: from a plain loop, or as a callback of Lightning."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from s2ap_core.errors import InputError
from s2ap_diag.curvature.meter import SharpnessMeter
from s2ap_diag.stability.meter import StabilityMeter

if TYPE_CHECKING:
    import pandas as pd


class Follower:
    """Reads stability and sharpness after each epoch of anyone's search, and changes nothing of it.

    Args:
        stability, sharpness: what is read; None leaves it out.

    >>> import torch
    >>> from s2ap_diag import attach, scores
    >>> model, x, y = attach(nn.Linear(8, 3), keep=0.25), torch.eye(8), torch.arange(8) % 3
    >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> follower, sgd = Follower(StabilityMeter(), SharpnessMeter(loss)), torch.optim.SGD(scores(model).values(), lr=9)
    >>> follower.on_start(model)
    >>> for epoch in range(2):
    ...     loss(model, (x, y)).backward()
    ...     sgd.step()
    ...     follower.on_batch(model, (x, y))
    ...     row = follower.on_epoch(model)
    >>> list(follower.to_frame().columns[:3]), len(follower.to_frame())
    (['epoch', 'h', 'h_per_kept'], 2)
    """

    def __init__(self, stability: StabilityMeter | None = None, sharpness: SharpnessMeter | None = None) -> None:
        if stability is None and sharpness is None:
            raise InputError("Follower: nothing to read; give StabilityMeter(), SharpnessMeter(loss), or both")
        self.stability, self.sharpness = stability, sharpness
        self.rows: list[dict[str, Any]] = []
        self.started = False

    def on_start(self, model: nn.Module) -> None:
        """Take the mask before the search; a second call, as after a resume, takes none."""
        if self.stability is not None and not self.started:
            self.stability.update(model)
        self.started = True

    def on_batch(self, model: nn.Module, batch: Any) -> None:
        """Show the sharpness meter a batch of the search."""
        if self.sharpness is not None:
            self.sharpness.update(model, batch)

    def on_epoch(self, model: nn.Module) -> dict[str, Any]:
        """Read what there is to read of the model as it is now, note it, and return it by name.

        Raises:
            InputError: if ``on_start`` or ``on_batch`` was not called before, or as the meters say.
        """
        row: dict[str, Any] = {"epoch": len(self.rows) + 1}
        if self.stability is not None:
            if not self.started:
                raise InputError("Follower: call on_start(model) before the search, for the mask to compare with")
            self.stability.update(model)
            row |= self.stability.compute().distances[-1].row()
        if self.sharpness is not None:
            row |= self.sharpness.compute().row()
            self.sharpness.reset()
        self.rows.append(row)
        return row

    def to_frame(self) -> "pd.DataFrame":
        """Make a frame with a row for each epoch."""
        import pandas as pd  # takes a second to import, which a search need not wait for

        return pd.DataFrame(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Give what :meth:`load_state_dict` goes on from after an epoch."""
        stability = None if self.stability is None else self.stability.state_dict()
        return {"rows": list(self.rows), "started": self.started, "stability": stability}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.rows, self.started = list(state["rows"]), state["started"]
        if self.stability is not None:
            self.stability.load_state_dict(state["stability"])


def lightning_callback(follower: Follower) -> Any:
    """Make a callback for ``Trainer(callbacks=[...])`` of Lightning, which logs each number with the epoch's others.

    The batches it shows are those of the training step: what of them the loss takes, adversarial examples for
    instance, is made by ``SharpnessMeter(prepare=...)``. A checkpoint of the trainer holds the follower's state.

    Raises:
        InputError: if Lightning is not installed.
    """
    try:
        # Only who trains with Lightning has it; both of its names are in use.
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback  # its other name
        except ImportError as error:
            raise InputError("Lightning is not installed; `pip install lightning`, or call Follower's hooks") from error

    class FollowSearch(Callback):  # type: ignore[misc]
        """Hand the trainer's hooks on."""

        def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
            follower.on_start(pl_module)

        def on_train_batch_end(
            self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            follower.on_batch(pl_module, batch)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            row = follower.on_epoch(pl_module)
            numbers = {name: float(v) for name, v in row.items() if isinstance(v, int | float) and name != "epoch"}
            pl_module.log_dict(numbers)

        def state_dict(self) -> dict[str, Any]:
            return follower.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            follower.load_state_dict(state_dict)

    return FollowSearch()
