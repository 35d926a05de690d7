"""lambda_max of a model's robust loss in its scores, with its uncertainty and its cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import nn

from s2ap_core import distributed
from s2ap_core.errors import InputError
from s2ap_core.modes import statistics
from s2ap_diag.curvature.batches import held, samples_in, shares_of
from s2ap_diag.curvature.dead import dead_scores
from s2ap_diag.curvature.deviations import standard_deviation, standard_error
from s2ap_diag.curvature.eigen import LambdaMax, Lanczos, Solver
from s2ap_diag.curvature.hessian import BatchNormMode, Loss, ScoreHessian
from s2ap_diag.curvature.operators import Projected, SymmetricOperator
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import layer_bars, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ByLayer = Literal["layer", "block"]


@dataclass(frozen=True)
class Curvature(Result):
    """Sharpness of the robust loss in the scores at one point of the search.

    What ends in ``live`` is of the scores of channels that keep at least one weight, which :class:`Projected` gives,
    and the same as without where no channel is dead (:class:`s2ap_diag.curvature.dead.DeadScores`).

    Attributes:
        lambda_max, lambda_max_live: largest eigenvalue of the Hessian of the mean loss over all batches.
        dead_channels: number of output channels that keep no weight.
        dead_share: share of dead scores in the squared eigenvector of lambda_max, in [0, 1].
        lambda_max_std, lambda_max_standard_error, the same with ``live``: how far lambda_max rests on the batches
            drawn. Of the batches' Rayleigh quotients u'H_b u at its eigenvector u, whose mean it is, the standard
            deviation and the standard error of the mean; None for a single batch. To first order the latter is
            the jackknife's over batches.
        dominant_eigenvalue: the one of largest magnitude, signed.
        residual, residual_live: relative residual of lambda_max, see :class:`s2ap_diag.curvature.eigen.Eigenpair`.
        converged, converged_live: whether lambda_max and the dominant eigenvalue reached the tolerance.
        solver: name of the way it was found.
        layers, layers_live: lambda_max of the diagonal block of each layer (or block), the largest first.
        layer_residuals, layer_residuals_live: the residual of each of those.
        hvps: Hessian-vector products over one batch, all that this reading made.
        symmetry_defect: see :meth:`s2ap_diag.curvature.hessian.ScoreHessian.symmetry_defect`.
        batch_norm: statistics that BatchNorm normalised with, part of the metric; ``none`` where there is none.
        batch_size: samples in the first batch.
    """

    by: ClassVar[str] = "layer"

    lambda_max: float
    lambda_max_live: float
    dead_channels: int
    dead_share: float
    lambda_max_std: float | None
    lambda_max_standard_error: float | None
    lambda_max_live_std: float | None
    lambda_max_live_standard_error: float | None
    dominant_eigenvalue: float
    residual: float
    residual_live: float
    converged: bool
    converged_live: bool
    solver: str
    hvps: int
    symmetry_defect: float
    batch_norm: str
    n_scores: int
    batches: int
    batch_size: int
    layers: dict[str, float]
    layer_residuals: dict[str, float]
    layers_live: dict[str, float]
    layer_residuals_live: dict[str, float]

    @property
    def residuals(self) -> dict[str, float]:
        """Every residual, by what it is of."""
        return {
            "lambda_max": self.residual,
            "lambda_max_live": self.residual_live,
            **{f"lambda_max of {name}": residual for name, residual in self.layer_residuals.items()},
            **{f"lambda_max_live of {name}": residual for name, residual in self.layer_residuals_live.items()},
        }

    def draw(self, axes: "Axes") -> None:
        """Draw lambda_max of each layer's live scores, the largest on top; without layers both lambda_max."""
        if self.layers_live:
            return layer_bars(axes, self.layers_live, xlabel=f"live lambda_max (BatchNorm: {self.batch_norm})")
        values = {
            "live scores": (self.lambda_max_live, self.lambda_max_live_standard_error),
            "all scores": (self.lambda_max, self.lambda_max_standard_error),
        }
        points(axes, values, ylabel=f"lambda_max (BatchNorm: {self.batch_norm})")


class _Reading(NamedTuple):
    """lambda_max of all batches, and of their Rayleigh quotients at its vector the deviation and the error."""

    eigen: LambdaMax
    std: float | None
    standard_error: float | None


class _Layer(NamedTuple):
    """lambda_max of a diagonal block, and over the scores of its live channels."""

    eigen: LambdaMax
    live: LambdaMax


def curvature(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    batch_norm: BatchNormMode = "running",
    solver: Solver = Lanczos(),
    seed: int = 0,
    by_layer: ByLayer | None = None,
) -> Curvature:
    """Find lambda_max of the score-space Hessian (Eq. 10 and 11), with its uncertainty and its cost.

    The model is left bit for bit as it was found. Several processes of a run, which hold the same batches,
    work on every ``world``-th of them each, and all of them get the result.

    Args:
        loss, batches, batch_norm, solver, seed: as for :class:`ScoreHessian` and :func:`lambda_max`.
        by_layer: measure the diagonal block of each ``layer``, or of each ``block``: the layers whose
            names agree in the first two components (``layer1.0.conv1`` is of block ``layer1.0``).

    Raises:
        InputError: for an option out of range, a network without scores, or values that are not finite.
    """
    if by_layer not in (None, "layer", "block"):
        raise InputError(f"by_layer = {by_layer!r}: choose layer or block")
    batches = held(batches)
    counts = [samples_in(batch) for batch in batches]
    dead = dead_scores(model)
    with spread(model, loss, batches, batch_norm) as whole:
        every = live = _read(whole, whole, solver, seed, counts)
        if dead.channels:
            live = _read(whole, Projected(whole, ~dead.where), solver, seed, counts)
        defect, hvps = whole.symmetry_defect(seed), whole.hvps
    layers, spent = _by_layer(whole, by_layer, solver, seed) if by_layer else ({}, 0)
    return Curvature(
        lambda_max=every.eigen.lambda_max,
        lambda_max_live=live.eigen.lambda_max,
        dead_channels=dead.channels,
        dead_share=dead.share(every.eigen.largest.vector),
        lambda_max_std=every.std,
        lambda_max_standard_error=every.standard_error,
        lambda_max_live_std=live.std,
        lambda_max_live_standard_error=live.standard_error,
        dominant_eigenvalue=every.eigen.dominant_eigenvalue,
        residual=every.eigen.residual,
        residual_live=live.eigen.residual,
        converged=every.eigen.converged,
        converged_live=live.eigen.converged,
        solver=solver.name,
        hvps=sum(distributed.gather(hvps + spent)),
        symmetry_defect=defect,
        batch_norm=statistics(model, batch_norm),
        n_scores=whole.n,
        batches=len(batches),
        batch_size=counts[0],
        layers={name: layer.eigen.lambda_max for name, layer in layers.items()},
        layer_residuals={name: layer.eigen.residual for name, layer in layers.items()},
        layers_live={name: layer.live.lambda_max for name, layer in layers.items()},
        layer_residuals_live={name: layer.live.residual for name, layer in layers.items()},
    )


def _read(whole: ScoreHessian, op: SymmetricOperator, solver: Solver, seed: int, counts: Sequence[int]) -> _Reading:
    """Read lambda_max of ``op``, the whole or a part of it, whose batches have so many samples."""
    eigen = solver.solve(op, seed=seed)
    if len(counts) > 1 and not solver.ends_on_vector:
        op.matvec(eigen.largest.vector)
    quotients = distributed.gather_in_order([float(quotient) for quotient in whole.quotients])
    return _Reading(eigen, standard_deviation(quotients, counts), standard_error(quotients, counts))


def _by_layer(whole: ScoreHessian, by: ByLayer, solver: Solver, seed: int) -> tuple[dict[str, _Layer], int]:
    """Read each diagonal block, the sharpest first, and count the products that it took here."""
    layers: dict[str, _Layer] = {}
    hvps = 0
    for name, members in _groups(list(whole.scores), by).items():
        with whole.restricted(members) as block:
            eigen = live = solver.solve(block, seed=seed)
            dead = dead_scores(whole.model, members)
            if dead.channels:
                live = solver.solve(Projected(block, ~dead.where), seed=seed)
            layers[name] = _Layer(eigen, live)
            hvps += block.hvps
    return dict(sorted(layers.items(), key=lambda named: -named[1].eigen.lambda_max)), hvps


def _groups(layers: list[str], by: ByLayer) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in layers:
        group = ".".join(name.split(".")[:2]) if by == "block" else name
        groups.setdefault(group, []).append(name)
    return groups


def spread(model: nn.Module, loss: Loss, batches: Sequence[Any], batch_norm: BatchNormMode) -> ScoreHessian:
    """Build the Hessian of all ``batches``, of which the processes of a run, if there are several, take turns."""
    if distributed.world() == 1:
        return ScoreHessian(model, loss, batches, batch_norm=batch_norm)
    own, weights = distributed.own_items(batches), distributed.own_items(shares_of(batches))
    return ScoreHessian(model, loss, own, batch_norm=batch_norm, weights=weights)
