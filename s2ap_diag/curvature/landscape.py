"""A model's loss as a function of how far its scores are moved."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2ap_diag.curvature.ascent import Place
from s2ap_diag.curvature.exchange import Reach
from s2ap_diag.curvature.hessian import (
    Loss,
    chosen_masks,
    finite_loss,
    flatten,
    score_gradient,
    scores_at,
    unflatten,
)

Scale = Literal["score", "one"]
Recraft = Callable[[nn.Module, Any], Any]


class Landscape:
    """The loss L(s + c u) of a batch as a function of the relative change u [n] of the scores s.

    Args:
        scale: c = |s| (``score``) or 1 (``one``).
        recraft: ``recraft(model, batch) -> batch`` makes a batch anew before each evaluation, on the model there.

    Attributes:
        origin: u = 0.
        kept: boolean [n], the mask there.

    Raises:
        InputError: for a network without scores; where the loss is evaluated, if it is not finite.
    """

    def __init__(self, model: nn.Module, loss: Loss, scale: Scale, recraft: Recraft | None) -> None:
        self._model, self._loss, self._recraft = model, loss, recraft
        self._masks = chosen_masks(model)
        self._scores = {name: mask.scores.detach() for name, mask in self._masks.items()}
        self._center = flatten(list(self._scores.values()))
        self._c = self._center.abs() if scale == "score" else torch.ones_like(self._center)
        self._forward_passes = self._backward_passes = 0
        self.origin = torch.zeros_like(self._center)
        self.kept = self.mask(self.origin)

    def reach(self, rho: float) -> Reach:
        """Find the masks that the ball |u| <= rho reaches."""
        sizes = [part.numel() for name, mask in self._masks.items() for part in mask.split(self._scores[name])]
        return Reach(self._center, self._c, self.kept, sizes, rho)

    @torch.no_grad()
    def mask(self, u: Tensor) -> Tensor:
        """Select the mask at u, boolean [n]."""
        with scores_at(self._model, self._at(u)):
            return flatten([mask.mask() for mask in self._masks.values()]).bool()

    def value(self, batch: Any, u: Tensor) -> float:
        """Evaluate the loss at u."""
        with scores_at(self._model, self._at(u)):
            batch = self._crafted(batch)
            with torch.no_grad():
                return float(finite_loss(self._model, self._loss, batch))

    def place(self, batch: Any, u: Tensor) -> Place:
        """Evaluate the loss and its gradient in u."""
        with scores_at(self._model, self._at(u)) as leaves:
            value = finite_loss(self._model, self._loss, self._crafted(batch))
            return self._placed(u, value, leaves)

    def place_above(self, batch: Any, u: Tensor, bound: float) -> Place | None:
        """Evaluate the loss, and its gradient in u if it is above ``bound``; None if it is not."""
        with scores_at(self._model, self._at(u)) as leaves:
            value = finite_loss(self._model, self._loss, self._crafted(batch))
            return self._placed(u, value, leaves) if float(value.detach()) > bound else None

    def passes(self) -> tuple[int, int]:
        """Count the forward and backward passes, each over one batch, since this was last asked."""
        counted = self._forward_passes, self._backward_passes
        self._forward_passes = self._backward_passes = 0
        return counted

    def _at(self, u: Tensor) -> dict[str, Tensor]:
        moved = torch.addcmul(self._center, self._c, u)
        return dict(zip(self._scores, unflatten(moved, list(self._scores.values())), strict=True))

    def _crafted(self, batch: Any) -> Any:
        self._forward_passes += 1
        return batch if self._recraft is None else self._recraft(self._model, batch)

    def _placed(self, u: Tensor, value: Tensor, leaves: list[nn.Parameter]) -> Place:
        self._backward_passes += 1
        return Place(u, float(value.detach()), flatten(score_gradient(value, leaves)).mul_(self._c))
