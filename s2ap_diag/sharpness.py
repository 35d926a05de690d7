"""Both sharpness metrics of one checkpoint: what ``s2ap-diag sharpness`` and the demo report."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from s2ap_core.config import ObjectiveSettings
from s2ap_core.data import Dataset
from s2ap_core.distributed.share import own_items
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import density as kept_fraction
from s2ap_core.modes import statistics
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.training.batch_norm import reestimate_statistics
from s2ap_core.training.objectives import build_objective
from s2ap_diag.curvature.adversary import AdversarialBatch, Adversary, describe_adversary, needs_reestimation
from s2ap_diag.curvature.ascent import Norm
from s2ap_diag.curvature.curvature import ByLayer, Curvature, curvature, spread
from s2ap_diag.curvature.density import SpectralDensity, spectral_density
from s2ap_diag.curvature.eigen import UNRELIABLE as UNRELIABLE
from s2ap_diag.curvature.eigen import Lanczos, Solver, unreliable
from s2ap_diag.curvature.hessian import BatchNormMode
from s2ap_diag.curvature.landscape import Scale
from s2ap_diag.curvature.loss_difference import Ascent, LossDifference, loss_differences
from s2ap_diag.curvature.reach import out_of_reach
from s2ap_diag.curvature.tracking import batch_loss
from s2ap_diag.stability.margins import ScoreMargins, score_margins

log = logging.getLogger(__name__)

RHOS = (0.001, 0.0025, 0.005, 0.0075, 0.01)


@dataclass(frozen=True)
class SharpnessSettings:
    """What to measure, and on what: Table 13's rho, 1,024 images in batches of 128.

    Attributes:
        solver: what finds lambda_max, with its limits.
        rho: radii of the loss difference; none of them leaves it out.
        ascent, steps, restarts, norm, scale: how and in which ball it is sought, see
            :func:`s2ap_diag.curvature.loss_difference.loss_differences`.
        recraft: make the adversarial examples anew at each step of the loss difference.
        spectrum: estimate the trace and the density of all eigenvalues too.
    """

    solver: Solver = Lanczos()
    batch_norm: BatchNormMode = "running"
    by_layer: ByLayer | None = None
    rho: Sequence[float] = RHOS
    ascent: Ascent | None = None
    steps: int = 20
    restarts: int = 2
    norm: Norm = "linf"
    scale: Scale = "score"
    recraft: bool = False
    spectrum: bool = False
    images: int = 1024
    batch_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Sharpness:
    """Curvature, loss differences and score margins of one checkpoint, in the order of the rho asked for.

    Attributes:
        out_of_reach: layers whose mask the search's gamma cannot change; None where it had none, or no number.
    """

    checkpoint: Checkpoint
    keep: float
    curvature: Curvature
    loss_differences: tuple[LossDifference, ...]
    batch_norm: str
    adversary: str
    seconds: float
    margins: tuple[ScoreMargins, ...]
    density: SpectralDensity | None
    out_of_reach: tuple[str, ...] | None

    def record(self) -> dict[str, Any]:
        """Return the entry of ``sharpness --json``."""
        density, n_scores = self.density, self.curvature.n_scores
        error = density.mean_standard_error if density else None
        return {
            "checkpoint": str(self.checkpoint.path),
            **{name: self.checkpoint.header.get(name) for name in ("epoch", "method", "minimizer", "gamma", "seed")},
            "keep": self.keep,
            **asdict(self.curvature),
            "batch_norm": self.batch_norm,
            "trace": density.mean * n_scores if density else None,
            "trace_standard_error": error * n_scores if error is not None else None,
            "loss_difference": {
                f"{difference.rho:g}": _loss_difference_record(difference, margin)
                for difference, margin in zip(self.loss_differences, self.margins, strict=True)
            },
            "out_of_reach": None if self.out_of_reach is None else list(self.out_of_reach),
            "adversary": self.adversary,
            "seconds": round(self.seconds, 3),
        }


def _loss_difference_record(difference: LossDifference, margins: ScoreMargins) -> dict[str, Any]:
    entries = asdict(difference)
    errors = ("standard_error", "average_case_standard_error", "average_case_monte_carlo_error", "flips_standard_error")
    options = ("ascent", "steps", "restarts", "norm", "scale", "recrafted")
    return {
        **{name: entries[name] for name in ("mean", "std", "average_case", *errors, *options)},
        "flips": difference.flips_mean,
        "flips_share": difference.flips_mean / difference.n_scores,
        # What the scores' margins predict: at most so many can flip, so many lie within rho c of the threshold.
        "flippable_share": margins.flippable,
        "within_share": margins.within,
    }


def without_scores(path: Path) -> InputError:
    """Make the refusal of a checkpoint, or of a folder of them, that holds no scores."""
    return InputError(
        f"{path}: has no scores; give a checkpoint of the search, as RUN/ckpt/prune-best, or another tool's file with "
        "LAYER.popup_scores (HYDRA, HARP) or LAYER.scores beside each LAYER.weight (hamming and evaluate need none)"
    )


def measure_sharpness(
    checkpoint: Checkpoint,
    data: Dataset,
    objective: ObjectiveSettings,
    settings: SharpnessSettings,
    on_step: Callable[[float], None] = lambda part: None,
) -> Sharpness:
    """Measure lambda_max and loss differences of a checkpoint with scores, on the same adversarial batches.

    Before the search (epoch 0) BatchNorm's running statistics are still the dense network's: in mode
    ``running`` they are first estimated anew on the measured images, and the record says so. Of a network without
    BatchNorm both modes measure the same, and the record says ``none``.

    Args:
        on_step: called with parts of the work that add up to ``1 + len(settings.rho)``.

    Raises:
        InputError: if the checkpoint has no scores, or a loss is not finite.
    """
    started = time.monotonic()
    if not score_masks(checkpoint.model):
        raise without_scores(checkpoint.path)
    adversary = Adversary(build_objective(objective), settings.seed)
    model = checkpoint.model
    batches, batch_norm = batches_of(
        checkpoint, adversary, data, settings.images, settings.batch_size, settings.batch_norm
    )
    loss = batch_loss(adversary.objective)
    measured = curvature(
        model,
        loss,
        batches,
        batch_norm=settings.batch_norm,
        solver=settings.solver,
        seed=settings.seed,
        by_layer=settings.by_layer,
    )
    if message := unreliable(measured.residuals):
        log.warning("%s; raise --iterations, or choose --method lanczos: %s", message, checkpoint.path)
    density = None
    if settings.spectrum:
        with spread(model, loss, batches, settings.batch_norm) as hessian:
            density = spectral_density(hessian, seed=settings.seed)
    on_step(1)
    differences = _loss_differences(model, adversary, batches, settings, on_step) if settings.rho else ()
    margins = tuple(score_margins(model, rho, settings.scale) for rho in settings.rho)
    return Sharpness(
        checkpoint=checkpoint,
        keep=kept_fraction(model),
        curvature=measured,
        loss_differences=differences,
        batch_norm=batch_norm,
        adversary=describe_adversary(objective, recrafted=settings.recraft),
        seconds=time.monotonic() - started,
        margins=margins,
        density=density,
        out_of_reach=_out_of_reach(checkpoint),
    )


def _out_of_reach(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    gamma = checkpoint.header.get("gamma")
    if not isinstance(gamma, float):
        return None
    layers = tuple(out_of_reach(checkpoint.model, gamma))
    if layers:
        log.warning("no z within gamma = %g changes the mask of %s: %s", gamma, ", ".join(layers), checkpoint.path)
    return layers


def batches_of(
    checkpoint: Checkpoint,
    adversary: Adversary,
    data: Dataset,
    images: int,
    batch_size: int,
    batch_norm: BatchNormMode,
) -> tuple[list[AdversarialBatch], str]:
    """Make the batches to measure on, and say which statistics BatchNorm then has.

    Statistics that are still the dense network's, as before the search, are estimated anew where they count.
    """
    model = checkpoint.model
    batches = adversary.batches(model, data, images, batch_size)
    if not needs_reestimation(checkpoint, batch_norm):
        return batches, statistics(model, batch_norm)
    reestimate_statistics(model, [batch[0] for batch in batches])
    batches = adversary.batches(model, data, images, batch_size)
    return batches, "running (re-estimated under the mask)"


def _loss_differences(
    model: nn.Module,
    adversary: Adversary,
    batches: Sequence[AdversarialBatch],
    settings: SharpnessSettings,
    on_step: Callable[[float], None],
) -> tuple[LossDifference, ...]:
    """Measure them as the settings say; each radius adds up to a step."""
    own = len(own_items(batches))
    return loss_differences(
        model,
        batch_loss(adversary.objective),
        batches,
        settings.rho,
        ascent=settings.ascent,
        steps=settings.steps,
        restarts=settings.restarts,
        norm=settings.norm,
        scale=settings.scale,
        recraft=adversary if settings.recraft else None,
        batch_norm=settings.batch_norm,
        seed=settings.seed,
        on_step=lambda: on_step(1 / own),
    )
