"""The loss on a plane through the scores: along the top eigenvector over live channels, and along S2AP's z."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_core.modes import gpu_arithmetic
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.perturbation import ascend_and_project
from s2ap_diag.curvature.batches import shares_of
from s2ap_diag.curvature.dead import dead_scores
from s2ap_diag.curvature.eigen import Solver, lambda_max
from s2ap_diag.curvature.hessian import (
    BatchNormMode,
    Loss,
    ScoreHessian,
    batch_norm_mode,
    flatten,
    unflatten,
)
from s2ap_diag.curvature.landscape import Landscape
from s2ap_diag.curvature.operators import Projected

FARTHEST = 100.0
"""Relative length of a step beyond which no flip is looked for: the scores are then a hundredth of the step."""

CLOSE = 0.01
"""Relative width within which the step of a number of flips is found."""


@dataclass(frozen=True)
class Directions:
    """The plane, in the coordinates of the scores [n].

    Attributes:
        eigenvector: of the largest eigenvalue over the scores of live channels, of length 1; uphill to first order.
        z: S2AP's perturbation at gamma = 1: of each layer the gradient, as long as the layer's scores.
        residual: relative, of the eigenvalue.
        converged: whether it reached the solver's tolerance.
        hvps: products over one batch that it took.
    """

    eigenvector: Tensor
    z: Tensor
    lambda_max_live: float
    residual: float
    converged: bool
    hvps: int


@dataclass(frozen=True)
class Axis:
    """Places along a direction, from its opposite to itself; the middle one is s.

    Attributes:
        steps: multiples of the direction, NaN where no step flips so many mask bits.
        flips: mask bits that a step flips, negative on the opposite side; where there is no step, those wanted.
        rho: length of a step over that of the scores, with the same sign. Along z it is gamma.
    """

    steps: np.ndarray
    flips: np.ndarray
    rho: np.ndarray


class Slice:
    """The loss at s + a v + b z, for v the eigenvector and z that of :class:`Directions`.

    Args:
        loss, batches: as for :class:`s2ap_diag.curvature.hessian.ScoreHessian`; the batches are held fixed.

    Raises:
        InputError: for a network without scores; where the loss is evaluated, if it is not finite.
    """

    def __init__(self, model: nn.Module, loss: Loss, batches: Sequence[Any], batch_norm: BatchNormMode) -> None:
        self.model, self.loss, self.batches, self.batch_norm = model, loss, batches, batch_norm
        self.landscape = Landscape(model, loss, "one", None)
        self.weights = np.array(shares_of(batches))
        self.length = float(flatten([layer.tensor.detach() for layer in score_layers(model)]).norm())

    def directions(self, solver: Solver, seed: int = 0) -> Directions:
        """Find the plane: the eigenvector by ``solver``, z by a forward and a backward pass over each batch."""
        dead = dead_scores(self.model)
        with ScoreHessian(self.model, self.loss, self.batches, batch_norm=self.batch_norm) as hessian:
            live = Projected(hessian, ~dead.where)
            found = lambda_max(live, solver, seed=seed)
            eigenvector, hvps = live.expand(found.largest.vector), hessian.hvps
        gradient = torch.zeros_like(self.landscape.origin)
        with torch.enable_grad(), gpu_arithmetic(tf32=False), batch_norm_mode(self.model, self.batch_norm):
            for batch, weight in zip(self.batches, self.weights, strict=True):
                gradient += weight * self.landscape.place(batch, self.landscape.origin).gradient
        layers = score_layers(self.model)
        ascent = unflatten(gradient, [layer.tensor.detach() for layer in layers])
        z = ascend_and_project(
            [torch.zeros_like(a) for a in ascent], ascent, Relative(1.0)(layers, ascent, seed), math.inf
        )
        uphill = -1.0 if float(gradient @ eigenvector) < 0 else 1.0
        return Directions(
            eigenvector=uphill * eigenvector / eigenvector.norm(),
            z=flatten(z),
            lambda_max_live=found.lambda_max,
            residual=found.residual,
            converged=found.converged,
            hvps=hvps,
        )

    def axis(self, direction: Tensor, flips: Sequence[int]) -> Axis:
        """Find the shortest steps along a direction, and against it, that flip so many mask bits, in ascending order.

        Only masks are selected, no pass is made. The number of flips grows with the step but for scores that change
        their sign, so that a step is found to within a hundredth.
        """
        against, along = (self._steps(sign * direction, flips) for sign in (-1.0, 1.0))
        steps = np.array([*(-step for step, _ in reversed(against)), 0.0, *(step for step, _ in along)])
        found = np.array([*(-count for _, count in reversed(against)), 0, *(count for _, count in along)])
        return Axis(steps, found, steps * float(direction.norm()) / self.length)

    def _steps(self, direction: Tensor, flips: Sequence[int]) -> list[tuple[float, int]]:
        norm = float(direction.norm())
        farthest = FARTHEST * self.length / norm if norm > 0 else 0.0
        found: list[tuple[float, int]] = []
        low, high = 0.0, farthest * 1e-6
        for count in flips:
            while high < farthest and self.flips(high * direction) < count:
                low, high = high, 2 * high
            reached = self.flips(high * direction)
            if reached < count:
                found.append((math.nan, count))
                continue
            while high - low > CLOSE * high:
                middle = (low + high) / 2
                enough = self.flips(middle * direction)
                low, high, reached = (low, middle, enough) if enough >= count else (middle, high, reached)
            found.append((high, reached))
            low = high
        return found

    def flips(self, step: Tensor) -> int:
        """Count the mask bits that differ between s and s + ``step``."""
        return int((self.landscape.mask(step) != self.landscape.kept).sum())

    @torch.no_grad()
    def value(self, step: Tensor) -> float:
        """Evaluate the mean loss over all batches at s + ``step``: a forward pass over each."""
        with gpu_arithmetic(tf32=False), batch_norm_mode(self.model, self.batch_norm):
            return float(self.weights @ [self.landscape.value(batch, step) for batch in self.batches])


def targets(entries: int, share: float, points: int) -> list[int]:
    """Space so many numbers of flips evenly up to a share of the entries; a mask flips bits in pairs."""
    return [max(2 * (i + 1), 2 * round(share * entries * (i + 1) / points / 2)) for i in range(points)]


def measure(
    plane: Slice,
    directions: Directions,
    axes: tuple[Axis, Axis],
    losses: np.ndarray,
    flips: np.ndarray,
    on_row: Callable[[], None],
) -> Iterator[None]:
    """Fill in what is NaN in ``losses`` [rows along z, columns along the eigenvector], and the flips there.

    Yields after each evaluation; ``on_row`` is called after each row with a new one, to save it.
    """
    across, up = axes
    for row, b in enumerate(up.steps):
        new = False
        for column, a in enumerate(across.steps):
            if not math.isnan(losses[row, column]) or math.isnan(a) or math.isnan(b):
                continue
            step = a * directions.eigenvector + b * directions.z
            losses[row, column], flips[row, column] = plane.value(step), plane.flips(step)
            new = True
            yield
        if new:
            on_row()
