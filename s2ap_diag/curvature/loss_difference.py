"""Sharpness as a loss difference in score space (Eq. 12), found from below.

    max over |v| <= rho c of L(s + v) - L(s),    c = |s| element-wise, or 1

v moves scores across their layer's threshold, so the mask itself changes; to scores that stay on
their side of it the loss is blind. With c = |s| a score of exactly 0 cannot move.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_core.distributed.share import collected, dealt
from s2ap_core.errors import InputError
from s2ap_core.seeds import derive_seed, generator
from s2ap_diag.curvature.ascent import Norm, Place, Scale, auto_pgd
from s2ap_diag.curvature.eigen import standard_deviation, standard_error
from s2ap_diag.curvature.exchange import Reach, exchange_ascent
from s2ap_diag.curvature.hessian import (
    BatchNormMode,
    Loss,
    batch_norm_mode,
    chosen_masks,
    finite_loss,
    flatten,
    samples_in,
    score_gradient,
    scores_at,
    unflatten,
)

Ascent = Literal["exchange", "auto-pgd"]


@dataclass(frozen=True)
class LossDifference:
    """Sharpness at one rho, in units of the loss; means over the batches weigh each by its samples.

    Attributes:
        mean, std, standard_error: of the worst case found in each batch; the last two are None for one batch.
            An ascent finds a lower bound: the maximum is at least that.
        per_batch: the worst case found in each batch, never below 0 as v = 0 is in the ball.
        average_case: of random v, uniform in the ball.
        average_case_standard_error: over the batches, each with draws of its own; None for one batch.
        average_case_monte_carlo_error: what the choice of the draws alone contributes; None for one draw.
        reference: L(s) of each batch.
        flips: mask bits that change under the worst v of each batch, out of ``n_scores``.
        flips_mean, flips_standard_error: of those.
        forward_passes, backward_passes: each over one batch; without those of ``recraft``. L(s) and its
            gradient, which all radii share, are counted at the smallest.
        batch_size: samples in the first batch.
        recrafted: whether the adversarial examples were made anew at each step.
    """

    rho: float
    mean: float
    std: float | None
    standard_error: float | None
    per_batch: tuple[float, ...]
    average_case: float
    average_case_standard_error: float | None
    average_case_monte_carlo_error: float | None
    reference: tuple[float, ...]
    flips: tuple[int, ...]
    flips_mean: float
    flips_standard_error: float | None
    n_scores: int
    forward_passes: int
    backward_passes: int
    norm: str
    scale: str
    ascent: str
    steps: int
    restarts: int
    draws: int
    recrafted: bool
    batch_norm: str
    batches: int
    batch_size: int


class _Found(NamedTuple):
    """What one batch gave at one radius."""

    worst: float  # rise of the loss
    random: list[float]  # its rise under each random v
    flips: int
    forward_passes: int
    backward_passes: int


def loss_difference(
    model: nn.Module, loss: Loss, batches: Sequence[Any], *, rho: float, **options: Any
) -> LossDifference:
    """Measure the loss difference at one radius; options and errors as of :func:`loss_differences`."""
    return loss_differences(model, loss, batches, (rho,), **options)[0]


def loss_differences(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    rhos: Sequence[float],
    *,
    ascent: Ascent | None = None,
    steps: int = 20,
    restarts: int = 2,
    norm: Norm = "linf",
    scale: Scale = "score",
    recraft: Callable[[nn.Module, Any], Any] | None = None,
    draws: int = 5,
    batch_norm: BatchNormMode = "running",
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[LossDifference, ...]:
    """Measure worst-case and average-case loss differences in score space (Eq. 12), in the order of ``rhos``.

    The ball is ``|v / c| <= rho`` in ``norm``; the ascent runs in u = v / c, so that all scores move at the
    same relative speed. At each radius it begins from the worst v of the radius below, so that what it finds in a
    batch never falls as rho grows. The model is left bit for bit as it was found. Several processes of a run,
    which hold the same batches, work on every ``world``-th of them each, and all of them get the result.

    Args:
        loss: ``loss(model, batch) -> scalar``, the mean over the batch's samples.
        batches: each a tuple of tensors, the first with the batch dimension.
        rhos: radii, relative to c.
        ascent: ``exchange`` goes from mask to mask (:mod:`s2ap_diag.curvature.exchange`), in the linf ball alone,
            where it is the default; ``auto-pgd`` is the paper's.
        steps, restarts: ``auto-pgd`` makes ``restarts`` ascents of ``steps`` steps, all but the first from random
            points. ``exchange`` evaluates as many points, and starts again wherever no exchange helps.
        scale: c = |s| (``score``) or 1 (``one``).
        recraft: ``recraft(model, batch) -> batch`` makes the adversarial examples anew before each
            evaluation, on the model at s + v (Stutz et al. 2021); None holds those of the batch fixed.
        draws: random v per batch for the average case.
        seed: of the random points.
        on_step: called after each radius of each batch that this process works on.

    Raises:
        InputError: for an option out of range, a network without scores, or a loss that is not finite.
    """
    ascent = ascent or ("auto-pgd" if norm == "l2" else "exchange")
    for rho in rhos:
        if not (rho >= 0 and math.isfinite(rho)):
            raise InputError(f"rho = {rho}: give a finite radius of at least 0")
    for name, count in {"steps": steps, "restarts": restarts, "draws": draws}.items():
        if count < 1:
            raise InputError(f"{name} = {count}: give at least 1")
    for name, (chosen, kind) in {"norm": (norm, Norm), "scale": (scale, Scale), "ascent": (ascent, Ascent)}.items():
        if chosen not in get_args(kind):
            raise InputError(f"{name} = {chosen!r}: choose {' or '.join(get_args(kind))}")
    if ascent == "exchange" and norm == "l2":
        raise InputError("ascent = 'exchange' keeps to the linf ball: choose auto-pgd for the l2 ball")
    if not len(batches):
        raise InputError("no batch to measure on: give at least one")

    masks = chosen_masks(model)
    scores = {name: mask.scores.detach() for name, mask in masks.items()}
    center = flatten(list(scores.values()))
    c = center.abs() if scale == "score" else torch.ones_like(center)
    origin = torch.zeros_like(center)
    forward_passes = backward_passes = 0

    def at(u: Tensor) -> dict[str, Tensor]:
        moved = torch.addcmul(center, c, u)
        return dict(zip(scores, unflatten(moved, list(scores.values())), strict=True))

    def crafted(batch: Any) -> Any:
        nonlocal forward_passes
        forward_passes += 1
        return batch if recraft is None else recraft(model, batch)

    def value_at(batch: Any, u: Tensor) -> float:
        with scores_at(model, at(u)):
            batch = crafted(batch)
            with torch.no_grad():
                return float(finite_loss(model, loss, batch))

    def place_above(batch: Any, u: Tensor, above: float) -> Place | None:
        nonlocal backward_passes
        with scores_at(model, at(u)) as leaves:
            value = finite_loss(model, loss, crafted(batch))
            if float(value.detach()) <= above:
                return None
            backward_passes += 1
            return Place(u, float(value.detach()), flatten(score_gradient(value, leaves)).mul_(c))

    def place_at(batch: Any, u: Tensor) -> Place:
        place = place_above(batch, u, -math.inf)
        assert place is not None
        return place

    @torch.no_grad()
    def mask_at(u: Tensor) -> Tensor:
        with scores_at(model, at(u)):
            return flatten([mask.mask() for mask in masks.values()]).bool()

    unperturbed = mask_at(origin)
    ascending = sorted(set(rhos))
    sizes = [tensor.numel() for tensor in scores.values()]
    reaches = {rho: Reach(center, c, unperturbed, sizes, rho) for rho in ascending if ascent == "exchange"}

    def climb(batch: Any, start: Place, kept: Tensor, rho: float, *parts: str | int) -> Place:
        if ascent == "exchange":
            drawing = np.random.default_rng(derive_seed(seed, *parts))
            return exchange_ascent(partial(place_above, batch), reaches[rho], start, kept, steps * restarts, drawing)
        rng = generator(center.device, seed, *parts)
        best = start
        for i in range(restarts):
            first = place_at(batch, _uniform(center, rho, norm, rng)) if i else start
            found = auto_pgd(partial(place_at, batch), first, radius=rho, norm=norm, steps=steps)
            best = max(best, found, key=lambda place: place.value)
        return best

    own: list[tuple[float, dict[float, _Found]]] = []  # L(s) of each batch, and what it gave at each radius
    with torch.enable_grad(), batch_norm_mode(model, batch_norm):
        for index, batch in dealt(list(enumerate(batches))):
            forward_passes = backward_passes = 0
            worst, kept = place_at(batch, origin), unperturbed
            reference, found = worst.value, {}
            for rho in ascending:
                worst = climb(batch, worst, kept, rho, "loss-difference", index, f"{rho:g}")
                kept = mask_at(worst.u)
                rng = generator(center.device, seed, "average-case", index)
                random = [value_at(batch, _uniform(center, rho, norm, rng)) - reference for _ in range(draws)]
                flips = int((kept != unperturbed).sum())
                found[rho] = _Found(worst.value - reference, random, flips, forward_passes, backward_passes)
                forward_passes = backward_passes = 0
                on_step()
            own.append((reference, found))
    references, founds = zip(*collected(own), strict=True)
    counts = [samples_in(batch) for batch in batches]
    weights = np.array(counts) / sum(counts)

    def summary(rho: float) -> LossDifference:
        at_rho = [found[rho] for found in founds]
        worst, random, flips, forward, backward = zip(*at_rho, strict=True)
        average = np.mean(random, axis=1)
        return LossDifference(
            rho=rho,
            mean=float(weights @ worst),
            std=standard_deviation(worst, counts),
            standard_error=standard_error(worst, counts),
            per_batch=worst,
            average_case=float(weights @ average),
            average_case_standard_error=standard_error(average, counts),
            average_case_monte_carlo_error=(
                math.sqrt(weights**2 @ np.var(random, axis=1, ddof=1) / draws) if draws > 1 else None
            ),
            reference=references,
            flips=flips,
            flips_mean=float(weights @ flips),
            flips_standard_error=standard_error(flips, counts),
            n_scores=center.numel(),
            forward_passes=sum(forward),
            backward_passes=sum(backward),
            norm=norm,
            scale=scale,
            ascent=ascent,
            steps=steps,
            restarts=restarts,
            draws=draws,
            recrafted=recraft is not None,
            batch_norm=batch_norm,
            batches=len(batches),
            batch_size=counts[0],
        )

    return tuple(summary(rho) for rho in rhos)


def _uniform(like: Tensor, radius: float, norm: Norm, rng: torch.Generator) -> Tensor:
    """Draw a point uniformly from the ball of ``radius`` around 0."""
    if norm == "linf":
        unit = torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)
        return radius * (2 * unit - 1)
    direction = torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
    distance = torch.rand((), generator=rng, dtype=torch.float64, device=like.device) ** (1 / like.numel())
    return direction * (radius * float(distance) / float(direction.norm()))
