"""Auto-PGD: steepest ascent in a ball around 0, from a place that is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
MOMENTUM = 0.75


@dataclass(frozen=True, eq=False)
class Place:
    """A point u [n], the function's value there, and its gradient [n] in u."""

    u: Tensor
    value: float
    gradient: Tensor


def auto_pgd(
    place_at: Callable[[Tensor], Place],
    start: Place,
    *,
    radius: float,
    norm: Norm = "linf",
    steps: int = 20,
) -> Place:
    """Maximise a function over the ball of ``radius`` around 0: Algorithm 1 of Croce & Hein (2020).

    Evaluates it once after each step and returns the best place seen, ``start`` if none is better.

    Args:
        place_at: u [n] -> f(u) and its gradient.
        start: a place in the ball.
    """
    step_length = 2 * radius
    checks = checkpoints(steps)
    x = previous = start.u
    here = best = start
    rises, last_check, best_at_check, just_halved = 0, 0, start.value, False

    for k in range(1, steps + 1):
        z = project(torch.add(x, steepest(here.gradient, norm), alpha=step_length), radius, norm)
        momentum = MOMENTUM if k > 1 else 1.0
        moved = torch.lerp(x, z, momentum).add_(x - previous, alpha=1 - momentum)
        x, previous = project(moved, radius, norm), x
        old_value = here.value
        here = place_at(x)
        rises += here.value > old_value
        if here.value > best.value:
            best = here
        if k in checks:
            few_rises = rises < 0.75 * (k - last_check)  # condition 1
            stalled = not just_halved and best.value == best_at_check  # condition 2
            just_halved = few_rises or stalled
            if just_halved:
                step_length /= 2
                x, here = best.u, best
            rises, last_check, best_at_check = 0, k, best.value
    return best


def checkpoints(steps: int) -> set[int]:
    """Return the steps after which Auto-PGD looks back: ``ceil(p_j steps)``, p_1 = 0.22, gaps shrinking to 0.06."""
    percent, gap, checked = 0, 22, set()
    while percent + gap <= 100:
        percent += gap
        checked.add(math.ceil(percent * steps / 100))
        gap = max(gap - 3, 6)
    return checked


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the direction of steepest ascent, of length 1 in ``norm``; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    direction: Tensor = gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
    return direction


def project(x: Tensor, radius: float, norm: Norm) -> Tensor:
    """Return the point of the ball around 0 that is nearest to x."""
    if norm == "linf":
        return x.clamp(-radius, radius)
    return x * min(1.0, radius / max(float(x.norm()), torch.finfo(x.dtype).tiny))
