"""How many images a run passes through its network, computed before it starts.

The unit is a forward and a backward pass of one image.
"""

import math
from collections.abc import Mapping

from s2ap_core.config import Config, ObjectiveSettings
from s2ap_core.data import Split
from s2ap_core.methods import build_method
from s2ap_core.runs import course
from s2ap_core.runs.course import Until

ROBUST = 0.5
"""Share of the test images that the later attacks of an evaluation still run on."""

EVALUATION = {
    "none": 1 / 3,
    "pgd-50": 51.0,
    # APGD-CE has 100 steps, targeted APGD 9 times 100 on what is left.
    "apgd": 100 + 900 * ROBUST,
    # FAB 9 times 100, each with a forward pass more, Square 5,000 forward passes, of which some change nothing.
    "autoattack": 100 + (900 + 900 * 4 / 3 + 5000 / 3) * ROBUST,
}
"""Passes for each test image."""


def image_passes(
    config: Config, images: Mapping[Split, int], since: Until | None = None, until: Until = "end"
) -> dict[str, float]:
    """Count the passes of each stage, an evaluation's as ``evaluate-STAGE``.

    Args:
        images: how many each split has.
        since: the end of the beginning that the run takes over; None where it takes over none.
        until: where the run ends.
    """
    plain, loss = passes_of_a_step(config.objective), passes_of_a_loss(config.objective)
    passes: dict[str, float] = {}
    for stage in course.trained(config, until):
        done = course.epochs(config, stage, since, until)
        passes[stage] = float(len(done) * (images["train"] + images["val"]) * plain)
        if stage == "prune":
            if since in (None, "pretrain"):  # the mask before the search is validated, and may come from gradients
                passes[stage] += (images["val"] + _read_for_scores(config, images["train"])) * plain
            perturbed = len(set(done) & set(course.perturbed(config)))
            passes[stage] += perturbed * images["train"] * _passes_of_a_perturbation(config)
            passes[stage] += len(done) * _tracked(config, images["train"])
        elif stage == "finetune" and config.finetune.awp:
            passes[stage] += len(done) * images["train"] * loss
    shown = min(config.evaluation.n or images["test"], images["test"])
    for stage in course.evaluated(config, until):
        passes[f"evaluate-{stage}"] = EVALUATION[config.evaluation.attack] * shown
    return passes


def _read_for_scores(config: Config, train: int) -> int:
    """Count the training images that are attacked for the gradients of a mask without a search."""
    reads = build_method(config.method).reads
    return min(config.method.batches * config.prune.batch_size, train) if "batches" in reads else 0


def passes_of_a_step(objective: ObjectiveSettings) -> float:
    """Count the passes of the attack and the loss, for each image of an iteration."""
    attack = {"clean": 0.0, "fast-at": 1.0}.get(objective.name, float(objective.steps))
    return attack + passes_of_a_loss(objective)


def passes_of_a_loss(objective: ObjectiveSettings) -> int:
    """Count the passes of the loss: of the clean and the adversarial images, or of one of them."""
    return 1 if objective.name in ("clean", "fast-at", "pgd-at") else 2


def _passes_of_a_perturbation(config: Config) -> float:
    """Count the passes of the extra loss for z."""
    minimizer = config.minimizer
    if minimizer.direction in ("shuffled", "random") or minimizer.source in ("last", "momentum"):
        return 0.0
    if minimizer.source == "attack":
        return 1 / minimizer.every  # gradients in the weights beside those in the images
    return passes_of_a_loss(config.objective) * minimizer.subset / minimizer.every


def _tracked(config: Config, train: int) -> float:
    """Count the passes of an epoch's readings."""
    tracking = config.tracking
    if not tracking.every:
        return 0.0
    batch = config.prune.batch_size
    readings = math.ceil(math.ceil(train / batch) / tracking.every)
    # At most: where no channel is dead, one reading serves both spectra. The last product is the quotient's; each is a
    # backward pass of a backward pass.
    products = len(course.batch_norm_modes(config)) * len(tracking.spectrum) * (tracking.iterations + 1)
    losses = passes_of_a_loss(config.objective)
    return readings * products * 2 * losses * min(tracking.images or batch, batch)
