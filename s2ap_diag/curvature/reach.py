"""What a perturbation of the scores can reach: the most mask entries within its ball, exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.layers import masked_layers, raw_weight
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
    if not (gamma > 0 and np.isfinite(gamma)):
        raise InputError(f"gamma = {gamma}: give a finite radius above 0")
    found, layers = {}, masked_layers(model)
    with torch.no_grad():
        for name, mask in chosen_masks(model).items():
            magnitudes, kept = mask.split(mask.scores.abs().double().cpu()), mask.split(mask.mask().bool().cpu())
            parts = [(m.numpy().ravel(), k.numpy().ravel()) for m, k in zip(magnitudes, kept, strict=True)]
            reach = _layer_reach(parts, gamma)
            entries = raw_weight(layers[name]).numel()
            shared = entries // mask.scores.numel()
            found[name] = replace(reach, entries=entries, flippable=reach.flippable * shared)
    return found


def out_of_reach(model: nn.Module, gamma: float) -> list[str]:
    """Name the layers, of those that are not dense, whose mask no perturbation within the ball can change."""
    return unreachable(perturbation_reach(model, gamma))


def unreachable(reach: Mapping[str, LayerReach]) -> list[str]:
    """Name the layers that are not dense and none of whose entries is in reach."""
    return [name for name, layer in reach.items() if layer.needed is not None and not layer.flippable]


def _layer_reach(parts: Sequence[tuple[np.ndarray, np.ndarray]], gamma: float) -> LayerReach:
    """Find the reach in a layer of these parts, given by magnitudes and what is kept of them."""
    size = sum(magnitude.size for magnitude, _ in parts)
    norm = float(np.linalg.norm(np.concatenate([magnitude for magnitude, _ in parts])))
    costs = [_SwapCost(np.sort(m[kept]), np.sort(m[~kept])[::-1]) for m, kept in parts if 0 < kept.sum() < len(m)]
    if not costs or not norm:
        return LayerReach(size, gamma * norm, 0, None)
    reach = (gamma * norm) ** 2 * (1 + ROUNDING)
    swaps = costs[0].most(reach) if len(costs) == 1 else _most_together(costs, reach)
    return LayerReach(size, gamma * norm, 2 * swaps, float(np.sqrt(min(cost(1) for cost in costs))) / norm)


def _most_together(costs: Sequence["_SwapCost"], reach: float) -> int:
    """Count the most swaps that parts make at a cost of ``reach`` in all, however they share it."""
    joint = np.zeros(1)  # the least cost of 0, 1, ... swaps in the parts so far
    for cost in costs:
        own = np.array([0.0, *(cost(m) for m in range(1, cost.most(reach) + 1))])
        least = np.full(len(joint) + len(own) - 1, np.inf)
        for m, more in enumerate(own):
            np.minimum(least[m : m + len(joint)], joint + more, out=least[m : m + len(joint)])
        joint = least[least <= reach]
    return len(joint) - 1


class _SwapCost:
    """The squared length of the shortest z that makes m swaps; ``weakest`` ascend, ``strongest`` descend."""

    def __init__(self, weakest: np.ndarray, strongest: np.ndarray) -> None:
        self.weakest, self.strongest = weakest, strongest

    def most(self, reach: float) -> int:
        """Count the most swaps at a cost of ``reach``; the cost rises with their number."""
        low, high = 0, min(len(self.weakest), len(self.strongest)) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(middle) <= reach else (low, middle)
        return low

    def __call__(self, m: int) -> float:
        a, b = self.weakest[:m], self.strongest[:m]

        def excess(tau: float) -> float:
            """Compute what the kept fall less what the dropped rise, which falls as tau grows."""
            return float(np.maximum(a - tau, 0).sum() - np.maximum(tau - b, 0).sum())

        low, high = float(b[-1]), float(a[-1])
        tau = brentq(excess, low, high, xtol=1e-15 * high) if excess(low) > 0 > excess(high) else low
        return float(np.square(np.maximum(a - tau, 0)).sum() + np.square(np.maximum(tau - b, 0)).sum())
