"""Sharpness as a loss difference in score space (Eq. 12), found by Auto-PGD.

    max over |v| <= rho c of L(s + v) - L(s),    c = |s| element-wise, or 1

v moves scores across their layer's threshold, so the mask itself changes; to scores that stay on
their side of it the loss is blind. With c = |s| a score of exactly 0 cannot move.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_core.distributed.group import gather
from s2ap_core.distributed.share import collected, dealt
from s2ap_core.errors import InputError
from s2ap_core.seeds import generator
from s2ap_diag.curvature.eigen import standard_deviation, standard_error
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

Norm = Literal["linf", "l2"]
MOMENTUM = 0.75


@dataclass(frozen=True, eq=False)
class Ascent:
    """Where Auto-PGD got: the best point [n], its value, the value at the start, its evaluations."""

    best: Tensor
    value: float
    start_value: float
    evaluations: int


def auto_pgd(
    value_and_gradient: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    *,
    radius: float,
    norm: Norm = "linf",
    steps: int = 20,
) -> Ascent:
    """Maximise a function over the ball of ``radius`` around 0: Algorithm 1 of Croce & Hein (2020).

    ``steps`` + 1 evaluations: one at the start and one after each step.

    Args:
        value_and_gradient: x [n] -> f(x) and its gradient [n].
        start: a point [n] of the ball.
    """
    step_length = 2 * radius
    checks = checkpoints(steps)
    x = previous = best = start
    value, gradient = value_and_gradient(x)
    start_value = best_value = value
    best_gradient = gradient
    rises, last_check, best_at_check, just_halved = 0, 0, value, False

    for k in range(1, steps + 1):
        z = project(torch.add(x, steepest(gradient, norm), alpha=step_length), radius, norm)
        momentum = MOMENTUM if k > 1 else 1.0
        moved = torch.lerp(x, z, momentum).add_(x - previous, alpha=1 - momentum)
        x, previous = project(moved, radius, norm), x
        old_value = value
        value, gradient = value_and_gradient(x)
        rises += value > old_value
        if value > best_value:
            best, best_value, best_gradient = x, value, gradient
        if k in checks:
            few_rises = rises < 0.75 * (k - last_check)  # condition 1
            stalled = not just_halved and best_value == best_at_check  # condition 2
            just_halved = few_rises or stalled
            if just_halved:
                step_length /= 2
                x, value, gradient = best, best_value, best_gradient
            rises, last_check, best_at_check = 0, k, best_value
    return Ascent(best, best_value, start_value, steps + 1)


def checkpoints(steps: int) -> set[int]:
    """The steps after which Auto-PGD looks back: ``ceil(p_j steps)``, p_1 = 0.22, gaps shrinking to 0.06."""
    percent, gap, found = 0, 22, set()
    while percent + gap <= 100:
        percent += gap
        found.add(math.ceil(percent * steps / 100))
        gap = max(gap - 3, 6)
    return found


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent, of length 1 in ``norm``; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)


def project(x: Tensor, radius: float, norm: Norm) -> Tensor:
    """The point of the ball around 0 that is nearest to x."""
    if norm == "linf":
        return x.clamp(-radius, radius)
    return x * min(1.0, radius / max(float(x.norm()), torch.finfo(x.dtype).tiny))


@dataclass(frozen=True)
class LossDifference:
    """Sharpness at one rho, in units of the loss.

    Attributes:
        mean, std, standard_error: of the worst case over the batches; the last two are None for one batch.
        per_batch: the worst case of each batch, never below 0 as v = 0 is in the ball.
        average_case: mean over the batches of the mean over random v; uniform in the ball.
        average_case_standard_error: over the batches, None for one.
        reference: L(s) of each batch.
        flips: mask bits that change under the worst v of each batch, out of ``n_scores``.
        forward_passes, backward_passes: each over one batch; without those of ``recraft``.
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
    reference: tuple[float, ...]
    flips: tuple[int, ...]
    n_scores: int
    forward_passes: int
    backward_passes: int
    norm: str
    scale: str
    steps: int
    restarts: int
    draws: int
    recrafted: bool
    batch_norm: str
    batches: int
    batch_size: int


def loss_difference(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    *,
    rho: float,
    steps: int = 20,
    norm: Norm = "linf",
    scale: Literal["score", "one"] = "score",
    recraft: Callable[[nn.Module, Any], Any] | None = None,
    restarts: int = 1,
    draws: int = 5,
    batch_norm: BatchNormMode = "running",
    seed: int = 0,
) -> LossDifference:
    """Worst-case and average-case loss difference in score space (Eq. 12).

    The ball is ``|v / c| <= rho`` in ``norm``; the ascent runs in u = v / c, so that all scores move at the
    same relative speed. The model is left bit for bit as it was found. Several processes of a run, which hold
    the same batches, work on every ``world``-th of them each, and all of them get the result.

    Args:
        loss: ``loss(model, batch) -> scalar``, the mean over the batch's samples.
        batches: each a tuple of tensors, the first with the batch dimension; averaged over.
        rho: radius, relative to c.
        steps: of Auto-PGD; each costs one forward and one backward pass, with one selection of the mask.
        scale: c = |s| (``score``) or 1 (``one``).
        recraft: ``recraft(model, batch) -> batch`` makes the adversarial examples anew before each
            evaluation, on the model at s + v (Stutz et al. 2021); None holds those of the batch fixed.
        restarts: ascents per batch: the first from v = 0, the others from random points of the ball.
        draws: random v per batch for the average case.
        seed: of the random points.

    Raises:
        InputError: for an option out of range, a network without scores, or a loss that is not finite.
    """
    if not (rho >= 0 and math.isfinite(rho)):
        raise InputError(f"rho = {rho}: give a finite radius of at least 0")
    for name, count in {"steps": steps, "restarts": restarts, "draws": draws}.items():
        if count < 1:
            raise InputError(f"{name} = {count}: give at least 1")
    if norm not in ("linf", "l2"):
        raise InputError(f"norm = {norm!r}: choose linf or l2")
    if scale not in ("score", "one"):
        raise InputError(f"scale = {scale!r}: choose score or one")
    if not len(batches):
        raise InputError("no batch to measure on: give at least one")

    masks = chosen_masks(model)
    scores = {name: mask.scores.detach() for name, mask in masks.items()}
    center = flatten(list(scores.values()))
    c = center.abs() if scale == "score" else torch.ones_like(center)
    forward_passes = backward_passes = 0

    def at(u: Tensor) -> dict[str, Tensor]:
        moved = torch.addcmul(center, c, u)
        return dict(zip(scores, unflatten(moved, list(scores.values())), strict=True))

    def evaluate(batch: Any, u: Tensor, differentiate: bool) -> tuple[float, Tensor]:
        nonlocal forward_passes, backward_passes
        with scores_at(model, at(u)) as leaves:
            batch = batch if recraft is None else recraft(model, batch)
            with torch.set_grad_enabled(differentiate):
                value = finite_loss(model, loss, batch)
            forward_passes += 1
            if not differentiate:
                return float(value), u
            backward_passes += 1
            return float(value.detach()), flatten(score_gradient(value, leaves)).mul_(c)

    @torch.no_grad()
    def masks_at(u: Tensor) -> Tensor:
        with scores_at(model, at(u)):
            return flatten([mask.mask() for mask in masks.values()])

    own: list[tuple[float, float, float, int]] = []  # L(s), worst and average rise, flips of each batch
    unperturbed = masks_at(torch.zeros_like(center))
    with torch.enable_grad(), batch_norm_mode(model, batch_norm):
        for index, batch in dealt(list(enumerate(batches))):
            rng = generator(center.device, seed, "loss-difference", index)

            def value_and_gradient(u: Tensor, batch: Any = batch) -> tuple[float, Tensor]:
                return evaluate(batch, u, differentiate=True)

            starts = [torch.zeros_like(center)]
            starts += [_uniform(center, rho, norm, rng) for _ in range(restarts - 1)]
            ascents = [auto_pgd(value_and_gradient, start, radius=rho, norm=norm, steps=steps) for start in starts]
            best = max(ascents, key=lambda ascent: ascent.value)
            at_zero = ascents[0].start_value
            random = [evaluate(batch, _uniform(center, rho, norm, rng), differentiate=False)[0] for _ in range(draws)]
            flipped = int((masks_at(best.best) != unperturbed).sum())
            own.append((at_zero, best.value - at_zero, float(np.mean(random)) - at_zero, flipped))
    reference, worst, average, flips = zip(*collected(own), strict=True)
    passes = gather((forward_passes, backward_passes))

    return LossDifference(
        rho=rho,
        mean=float(np.mean(worst)),
        std=standard_deviation(worst),
        standard_error=standard_error(worst),
        per_batch=worst,
        average_case=float(np.mean(average)),
        average_case_standard_error=standard_error(average),
        reference=reference,
        flips=flips,
        n_scores=center.numel(),
        forward_passes=sum(forward for forward, _ in passes),
        backward_passes=sum(backward for _, backward in passes),
        norm=norm,
        scale=scale,
        steps=steps,
        restarts=restarts,
        draws=draws,
        recrafted=recraft is not None,
        batch_norm=batch_norm,
        batches=len(batches),
        batch_size=samples_in(batches[0]),
    )


def _uniform(like: Tensor, radius: float, norm: Norm, rng: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball of ``radius`` around 0."""
    if norm == "linf":
        unit = torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)
        return radius * (2 * unit - 1)
    direction = torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
    distance = torch.rand((), generator=rng, dtype=torch.float64, device=like.device) ** (1 / like.numel())
    return direction * (radius * float(distance) / float(direction.norm()))
