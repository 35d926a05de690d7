"""What a perturbation of the scores can reach: the most mask entries within its ball, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.layers import masked_layers, raw_weight
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_diag.curvature.hessian import chosen_masks

ROUNDING = 1e-5
"""By how much a z in float32 may be longer than its radius, squared and relative."""


@dataclass(frozen=True)
class LayerReach:
    """What a perturbation within a layer's ball can do to its mask at most.

    Attributes:
        radius: of the l2 ball, ``gamma |s|``.
        flippable: the most mask entries that a z within it changes, see :func:`perturbation_reach`; of a channel's
            score all of its entries.
        needed: the smallest gamma that flips an entry; None where no gamma does, as in a dense layer.
    """

    entries: int
    radius: float
    flippable: int
    needed: float | None


def perturbation_reach(model: nn.Module, gamma: float) -> dict[str, LayerReach]:
    """Compute by layer the most mask entries that a perturbation ``|z| <= gamma |s|`` can flip, exactly.

    m of the kept and m of the dropped entries change places if there is a threshold tau that the first fall to and the
    second rise to. The cheapest are the m weakest kept, of magnitudes a, and the m strongest dropped, of magnitudes b:
    m swaps fit if and only if

        min over tau of  sum over j <= m of  (a_j - tau)_+^2 + (tau - b_j)_+^2  <=  (gamma |s|)^2.

    At the minimum both sides fall and rise by equal sums, which gives tau. A z of S2AP goes in one direction only and
    flips fewer. A layer of several units shares its ball out among them. Where entries tie at tau, the z that flips
    them lies just outside of the ball.

    Args:
        gamma: radius of the balls, relative to the norm of each layer's scores.

    Raises:
        InputError: if gamma is not positive and finite, the network has no scores, or they hold NaN.
    """
    _check_gamma(gamma)
    found, layers = {}, masked_layers(model)
    for name, mask in chosen_masks(model).items():
        norm, parts = _parts(mask)
        entries = raw_weight(layers[name]).numel()
        swaps = _most_together([_SwapCost(*part) for part in parts], (gamma * norm) ** 2 * (1 + ROUNDING))
        flippable = 2 * swaps * (entries // mask.scores.numel())
        found[name] = LayerReach(entries, gamma * norm, flippable, _least_gamma(norm, parts))
    return found


def out_of_reach(model: nn.Module, gamma: float) -> list[str]:
    """Name the layers, of those that are not dense, whose mask no perturbation within the ball can change.

    Raises:
        InputError: as :func:`perturbation_reach` does.
    """
    _check_gamma(gamma)
    needed = {name: _least_gamma(*_parts(mask)) for name, mask in chosen_masks(model).items()}
    return [name for name, least in needed.items() if least is not None and least > gamma * (1 + ROUNDING) ** 0.5]


def _check_gamma(gamma: float) -> None:
    if not (gamma > 0 and np.isfinite(gamma)):
        raise InputError(f"gamma = {gamma}: give a finite radius above 0")


@torch.no_grad()
def _parts(mask: ScoreMask) -> tuple[float, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the norm of a layer's scores, and the magnitudes kept and dropped in each part where some are of both."""
    magnitude, kept = mask.scores.abs().double().cpu(), mask.mask().bool().cpu()
    pairs = zip(mask.split(magnitude), mask.split(kept), strict=True)
    split = [(m.numpy().ravel(), k.numpy().ravel()) for m, k in pairs]
    norm = float(magnitude.norm())
    return norm, [(m[k], m[~k]) for m, k in split if norm and 0 < k.sum() < len(m)]


def _least_gamma(norm: float, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Compute the smallest gamma that makes a swap: the two entries meet halfway. None where there is none to make."""
    gaps = [float(kept.min() - dropped.max()) for kept, dropped in parts]
    return min(gaps) / (2**0.5 * norm) if gaps else None


def _most_together(costs: Sequence["_SwapCost"], reach: float) -> int:
    """Count the most swaps that parts make at a cost of ``reach`` in all, however they share it.

    A price for each swap, at which each part chooses a number for itself, gives a number that fits. What that leaves
    of the reach bounds how far any better choice departs from it, so that the least costs of all sums are tabulated
    near it alone; the costs are not convex, and a price alone would miss some.
    """
    tables = [np.array([0.0, *cost(np.arange(1, cost.most(reach) + 1))]) for cost in costs]

    def chosen(price: float) -> list[int]:
        return [int((table - price * np.arange(len(table))).argmin()) for table in tables]

    def spent(price: float) -> float:
        return sum(float(table[m]) for table, m in zip(tables, chosen(price), strict=True))

    low, high = 0.0, 2 * reach  # at the one no swap is worth its cost, at the other each that fits
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) <= reach else (low, middle)
    left = reach - spent(low) + 1e-9 * reach
    first, joint = 0, np.zeros(1)  # the least cost of ``first`` and more swaps in the parts so far
    for table in tables:
        lost = table - low * np.arange(len(table))
        near = np.flatnonzero(lost - lost.min() <= left)
        window = table[near[0] : near[-1] + 1]
        least = np.full(len(joint) + len(window) - 1, np.inf)
        for m, more in enumerate(window):
            np.minimum(least[m : m + len(joint)], joint + more, out=least[m : m + len(joint)])
        first, joint = first + int(near[0]), least
    return first + int(np.flatnonzero(joint <= reach)[-1])


class _SwapCost:
    """The squared length of the shortest z that makes m swaps, of each of several m at once."""

    def __init__(self, kept: np.ndarray, dropped: np.ndarray) -> None:
        centre = (kept.min() + dropped.max()) / 2
        self.above, self.below = _Sums(kept - centre), _Sums(centre - dropped)
        self.all = min(len(kept), len(dropped))

    def most(self, reach: float) -> int:
        """Count the most swaps at a cost of ``reach``; the cost rises with their number."""
        bounds = np.array([0, self.all + 1])
        while bounds[-1] - bounds[0] > 1:
            tried = np.unique(np.linspace(bounds[0], bounds[-1], 64).astype(int))
            within = int((self(tried[1:-1]) <= reach).sum())
            bounds = tried[within : within + 2]
        return int(bounds[0])

    def __call__(self, m: np.ndarray) -> np.ndarray:
        """Compute the costs of these numbers of swaps, all above 0, [n]; tau, from the centre, by bisection."""
        low, high = -self.below.sorted[m - 1], self.above.sorted[m - 1]
        for _ in range(55):
            tau = (low + high) / 2
            falls = self.above.beyond(m, tau)[0] > self.below.beyond(m, -tau)[0]
            low, high = np.where(falls, tau, low), np.where(falls, high, tau)
        cost: np.ndarray = self.above.beyond(m, tau)[1] + self.below.beyond(m, -tau)[1]
        return cost


class _Sums:
    """Sums over how far the smallest values lie above a bound."""

    def __init__(self, values: np.ndarray) -> None:
        self.sorted = np.sort(values)
        self.sums, self.squares = (np.append(0.0, np.cumsum(self.sorted**power)) for power in (1, 2))

    def beyond(self, m: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum ``(v - bound)_+`` and its square over the m smallest values v, by prefix sums."""
        start = np.minimum(np.searchsorted(self.sorted, bound, side="right"), m)
        count, total, squares = m - start, self.sums[m] - self.sums[start], self.squares[m] - self.squares[start]
        return total - count * bound, squares - 2 * bound * total + count * bound**2
