"""Sharpness with a memory, in the manner of torchmetrics: the batches come one by one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_diag.curvature.batches import held, samples_in
from s2ap_diag.curvature.curvature import ByLayer, Curvature, curvature
from s2ap_diag.curvature.eigen import Lanczos, Solver, warn_of_residuals
from s2ap_diag.curvature.hessian import BatchNormMode, Loss
from s2ap_diag.curvature.loss_difference import LossDifference, loss_differences
from s2ap_diag.display.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SharpnessReading(Result):
    """Curvature and loss differences, in the order of the rho asked for, on the same batches."""

    by: ClassVar[str] = "layer"

    curvature: Curvature
    loss_differences: tuple[LossDifference, ...]

    def row(self) -> dict[str, Any]:
        """Give what is one number of the curvature, and ``loss_difference_RHO`` of each radius."""
        differences = {f"loss_difference_{reading.rho:g}": reading.mean for reading in self.loss_differences}
        return self.curvature.row() | differences

    def details(self) -> dict[str, Any]:
        """Give those of the curvature."""
        return self.curvature.details()

    def draw(self, axes: "Axes") -> None:
        """Draw the curvature."""
        self.curvature.draw(axes)


class SharpnessMeter:
    """How sharp is the loss in the scores? Holds batches, and measures the model as it is when it is asked.

    The model has scores (``attach``, or a checkpoint of a search), and is left bit for bit as it was found; nothing is
    drawn from a global generator, so that a search that is measured is the same search.

    Args:
        loss: ``loss(model, batch) -> scalar``, the mean over the batch's samples.
        images: batches are held until there are so many samples; more are passed over until :meth:`reset`.
        prepare: ``prepare(model, batch) -> batch`` makes of a batch that is held what the loss takes, for instance the
            adversarial examples, which are held fixed from then on.
        rho: radii of the loss difference; none of them leaves it out.
        solver, batch_norm, by_layer, seed: as for :func:`s2ap_diag.curvature.curvature.curvature`.

    >>> import torch
    >>> from s2ap_diag import attach
    >>> model = attach(nn.Linear(4, 3), keep=0.5)
    >>> meter = SharpnessMeter(lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["y"]))
    >>> for x in torch.eye(4).split(2):
    ...     meter.update(model, {"x": x, "y": torch.tensor([0, 1])})
    >>> meter.compute().curvature.batches
    2
    """

    def __init__(
        self,
        loss: Loss,
        *,
        images: int = 1024,
        prepare: Callable[[nn.Module, Any], Any] | None = None,
        rho: Sequence[float] = (),
        solver: Solver = Lanczos(),
        batch_norm: BatchNormMode = "running",
        by_layer: ByLayer | None = None,
        seed: int = 0,
    ) -> None:
        self.loss, self.images, self.prepare, self.rho = loss, images, prepare, rho
        self.solver, self.batch_norm, self.by_layer, self.seed = solver, batch_norm, by_layer, seed
        self._model: nn.Module | None = None
        self._batches: list[Any] = []

    def update(self, model: nn.Module, batch: Any) -> None:
        """Hold a copy of a batch, a tuple or dict of tensors, unless there are enough; note the model.

        Raises:
            InputError: if it is no batch, or holds no tensor.
        """
        self._model = model
        if sum(map(samples_in, self._batches)) < self.images:
            batch = batch if self.prepare is None else self.prepare(model, batch)
            self._batches += map(_copy, held([batch]))

    def compute(self) -> SharpnessReading:
        """Measure the model that was noted last, as it is now, on all batches held; a residual above 0.1 is warned of.

        Raises:
            InputError: if no batch is held, the network has no scores, or values are not finite.
        """
        if self._model is None or not self._batches:
            raise InputError("SharpnessMeter: no batch is held; update(model, batch) at least once before compute()")
        measured = curvature(
            self._model,
            self.loss,
            self._batches,
            batch_norm=self.batch_norm,
            solver=self.solver,
            seed=self.seed,
            by_layer=self.by_layer,
        )
        warn_of_residuals(measured.residuals, stacklevel=3)
        options: dict[str, Any] = {"batch_norm": self.batch_norm, "seed": self.seed}
        differences = loss_differences(self._model, self.loss, self._batches, self.rho, **options) if self.rho else ()
        return SharpnessReading(measured, differences)

    def reset(self) -> None:
        """Let the batches and the model go."""
        self._model, self._batches = None, []


def _copy(part: Any) -> Any:
    """Copy the tensors of a batch, which a loop may write over and whose graphs are not needed."""
    if isinstance(part, Tensor):
        return part.detach().clone()
    if isinstance(part, Mapping):
        return {key: _copy(value) for key, value in part.items()}
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*map(_copy, part))
    return tuple(map(_copy, part)) if isinstance(part, list | tuple) else part
