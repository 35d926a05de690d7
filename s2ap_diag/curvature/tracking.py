"""Curvature and what the perturbation does, while the search runs."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2ap_core.config import TrackingSettings
from s2ap_core.config.parts import Registry, call
from s2ap_core.distributed.share import Share
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import masks
from s2ap_core.modes import statistics
from s2ap_core.training.ball import Relative
from s2ap_core.training.iteration import Step
from s2ap_core.training.loop import Callback, Loop
from s2ap_core.training.objectives import Objective
from s2ap_diag.curvature.dead import DeadScores, dead_scores
from s2ap_diag.curvature.eigen import LambdaMax, Lanczos, PowerIteration
from s2ap_diag.curvature.hessian import Loss, ScoreHessian
from s2ap_diag.curvature.operators import Projected
from s2ap_diag.curvature.reach import out_of_reach, perturbation_reach
from s2ap_diag.curvature.secant import probe

log = logging.getLogger(__name__)

TINY = 1e-30
"""Least squared length that is divided by: where z is 0, so is its product with any gradient."""


def batch_loss(objective: Objective) -> Loss:
    """Make an objective's loss a function of a model and a batch (x, x_adv, y), the examples held fixed."""
    return lambda model, batch: objective.loss(model, *batch)


class CurvatureTracker(Callback):
    """Reads, at every ``every``-th iteration of the search, on that iteration's own adversarial batch:

    - lambda_max and the dominant eigenvalue of the score-space Hessian, for each mode of BatchNorm that is
      asked for (``lambda_max_running``, ``lambda_max_batch``; of a network without BatchNorm once, as
      ``lambda_max_none``), with the HVPs spent and the share of the eigenvector that lies on the scores of dead
      channels;
    - lambda_max over the scores of live channels alone (``lambda_max_live_running``, ``lambda_max_live_batch``),
      with the HVPs spent: none where no channel is dead and the other is read;
    - the number of dead channels;
    - with a perturbation z: the mask bits that it flips, ``L(s + z) - L(s)``, the share of layers whose
      mask stayed, and the layers whose mask no z within gamma can change, which are also named in the log.

    At every iteration, for it costs no pass, it reads the secant curvature along z, ``(g(s + z) - g(s)) . z / |z|^2``
    (``curvature_along_z``): through the bits that z flips, and 0 without a flip. With ``by_layer`` it and the flips
    are read of each layer too, and at readings the share of its entries that some z within gamma flips (``switchable``)
    and the least gamma that flips one (``margin``). Of a search without a perturbation all these are read with
    ``along_z``, the curvature at one pass.

    Recipe ``paper`` runs ``iterations`` of power iteration from a random vector (App. C.1). Recipe ``warm`` is
    Lanczos from the last eigenvector, which stops at the residual ``tolerance``, after ``iterations`` at the latest.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        self.settings = settings
        self.rows: list[tuple[int | str, str, float | Tensor]] = []
        self.vectors: dict[str, Tensor] = {}
        self.warned = False

    def on_attacked(self, loop: Loop, x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        due = self._is_due(loop)
        if due:
            # With several processes, the first images of the whole batch: each process has its part of them.
            share = loop.share or Share(len(y))
            images = min(self.settings.images or share.count, share.count)
            n = share.first(images)
            self._read_curvature(loop, (x[:n], x_adv[:n], y[:n]), n / images)
        if due and loop.perturbation is None and self.settings.along_z is not None:
            self._add_reach(loop, self.settings.along_z)
        if loop.perturbation is not None:
            loop.perturbation.on_perturbed = self._watch_flips(loop) if due else None
            loop.perturbation.reads_curvature = loop.stage == "prune"
            scores_move = all(layer.mask is not None for layer in loop.perturbation.layers)
            if due and scores_move and isinstance(loop.perturbation.radius, Relative):
                self._read_reach(loop, loop.perturbation.radius.gamma)

    def _is_due(self, loop: Loop) -> bool:
        return loop.stage == "prune" and loop.iteration % self.settings.every == 0

    def on_gradient(self, loop: Loop, robust_loss: Callable[[], Tensor]) -> None:
        if loop.perturbation is None and self.settings.along_z is not None and self._is_due(loop):
            found = probe(loop.model, self.settings.along_z, robust_loss, loop.optimizer, seed=loop.seed)
            self._add_curvature(loop, found.products, found.squares)

    def _read_curvature(self, loop: Loop, batch: tuple[Tensor, Tensor, Tensor], weight: float) -> None:
        dead = dead_scores(loop.model)
        self._add(loop, dead_channels=dead.channels)
        modes = {statistics(loop.model, mode): mode for mode in self.settings.batch_norm}
        for name, mode in modes.items():
            loss = batch_loss(loop.objective)
            with ScoreHessian(loop.model, loss, [batch], batch_norm=mode, weights=[weight]) as hessian:
                self._read_spectra(loop, hessian, dead, name)

    def _read_spectra(self, loop: Loop, hessian: ScoreHessian, dead: DeadScores, mode: str) -> None:
        eigen = None
        if "all" in self.settings.spectrum:
            everything = torch.ones_like(dead.where)
            eigen = self._lambda_max(loop, Projected(hessian, everything), f"all_{mode}")
            row = {
                "lambda_max": eigen.lambda_max,
                "dominant_eigenvalue": eigen.dominant_eigenvalue,
                "residual": eigen.residual,
                "hvps": eigen.hvps,
                "dead_share": dead.share(eigen.largest.vector),
            }
            self._add(loop, **{f"{metric}_{mode}": value for metric, value in row.items()})
        if "live" in self.settings.spectrum:
            spent = 0
            if eigen is None or dead.channels:
                eigen = self._lambda_max(loop, Projected(hessian, ~dead.where), f"live_{mode}")
                spent = eigen.hvps
            row = {"lambda_max_live": eigen.lambda_max, "residual_live": eigen.residual, "hvps_live": spent}
            self._add(loop, **{f"{metric}_{mode}": value for metric, value in row.items()})

    def _lambda_max(self, loop: Loop, op: Projected, name: str) -> LambdaMax:
        settings = self.settings
        if settings.recipe == "paper":
            return PowerIteration(settings.iterations).solve(op, seed=loop.seed)
        start = op.restrict(self.vectors[name].to(op.device)) if name in self.vectors else None
        reading = Lanczos(settings.iterations, settings.tolerance, start).solve(op, seed=loop.seed)
        found = reading.largest.vector
        if reading.dominant is not reading.largest:
            found = found + reading.dominant.vector  # from the sum, the next reading finds both
        # Kept in all coordinates, since other scores may be live at the next reading.
        self.vectors[name] = op.expand(found)
        return reading

    def _add_curvature(self, loop: Loop, products: Tensor, squares: Tensor) -> None:
        self._add(loop, curvature_along_z=products.sum() / squares.sum().clamp(min=TINY))
        if self.settings.by_layer:
            names = score_masks(loop.model)
            self._add(
                loop,
                **{f"curvature_along_z/{n}": v for n, v in zip(names, products / squares.clamp(min=TINY), strict=True)},
            )

    def _read_reach(self, loop: Loop, gamma: float) -> None:
        self._add_reach(loop, gamma)
        layers = out_of_reach(loop.model, gamma)
        self._add(loop, perturbation_layers_out_of_reach=len(layers))
        if layers and not self.warned:
            log.warning("no z within minimizer.gamma = %g changes the mask of %s", gamma, ", ".join(layers))
            self.warned = True

    def _add_reach(self, loop: Loop, gamma: float) -> None:
        """With ``by_layer``, note the share of each layer in reach, and the least gamma that flips an entry of it."""
        if self.settings.by_layer:
            reach = perturbation_reach(loop.model, gamma)
            shares = {f"switchable/{name}": layer.flippable / layer.entries for name, layer in reach.items()}
            margins = {f"margin/{n}": layer.needed for n, layer in reach.items() if layer.needed is not None}
            self._add(loop, **shares, **margins)

    def _add(self, loop: Loop, **values: float | Tensor) -> None:
        self.rows += [(loop.iteration, metric, value) for metric, value in values.items()]

    def _watch_flips(self, loop: Loop) -> Any:
        before = masks(loop.model)

        def on_perturbed() -> None:
            flips = [int((mask ^ before[name]).sum()) for name, mask in masks(loop.model).items()]
            stayed = sum(flip == 0 for flip in flips) / len(flips)
            self._add(loop, perturbation_flips=sum(flips), perturbation_layers_unchanged=stayed)
            if self.settings.by_layer:
                by_layer = zip(score_masks(loop.model), flips, strict=True)
                self._add(loop, **{f"perturbation_flips/{name}": count for name, count in by_layer})

        return on_perturbed

    def on_iteration(self, loop: Loop, step: Step) -> None:
        if loop.stage == "prune" and loop.perturbation is not None and loop.perturbation.curvature is not None:
            self._add_curvature(loop, *loop.perturbation.curvature)
        if loop.perturbation is not None and loop.perturbation.on_perturbed is not None:
            if loop.perturbation.loss.isfinite():
                self._add(loop, perturbation_loss_difference=(step.loss - loop.perturbation.loss).item())
            loop.perturbation.on_perturbed = None

    def on_epoch(self, loop: Loop) -> Sequence[tuple[int | str, str, float]]:
        """Return every reading of the epoch, then the mean of each metric over them."""
        by_metric: dict[str, list[float]] = defaultdict(list)
        readings = [(iteration, metric, float(value)) for iteration, metric, value in self.rows]
        for _, metric, value in readings:
            by_metric[metric].append(value)
        rows = [*readings, *(("", metric, float(np.mean(values))) for metric, values in by_metric.items())]
        self.rows = []
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.vectors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.vectors = {name: torch.as_tensor(vector) for name, vector in state.items()}


TRACKERS: Registry[Callable[..., Callback]] = Registry("metric", None, {"curvature": CurvatureTracker})


def build_trackers(settings: TrackingSettings) -> list[Callback]:
    """Build the trackers that settings name; none where nothing is to be read.

    Raises:
        InputError: if there is none of a name, or it raises or is no Callback.
    """
    try:
        factories = {name: TRACKERS.find(name) for name in settings.metrics}
        made = [
            call(f"metric {n}", f, settings, offered={}, options={}) for n, f in factories.items() if settings.every
        ]
    except InputError as error:
        raise InputError(f"tracking.metrics: {error}") from error
    for tracker in made:
        if not isinstance(tracker, Callback):
            raise InputError(f"tracking.metrics: a {type(tracker).__name__} is no metric; return a Callback")
    return made
