"""HARP (Zhao & Wressnegger 2023): HYDRA's scores, and a learned keep rate for each layer."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_core.config import MethodSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import Layer, maskable_layers, score_masks
from s2ap_core.masks.masking import attach_masks, scaled_scores
from s2ap_core.masks.parametrization import ScoreMask, check_keep
from s2ap_core.masks.topk import n_dropped
from s2ap_core.methods.base import Method

# Distance of the sigmoid from 0 and 1 that a rate in float32 still resolves.
LEAST = 1e-9

LARGEST_START = 0.99
"""No keep rate starts above it: at 1 the sigmoid has no slope, and the rate would never move."""


class Harp(Method):
    """Learned keep rates ``k = k_min + (1 - k_min) * sigmoid(r)`` with ``k_min = 0.1 * target``.

    A penalty ``c * (epoch + 1) * max(kept / target - 1, 0)`` drives the network towards its target; its
    factor stops growing once the target has been reached, to four decimals. What an epoch offers to the selection
    is its mask scaled to exactly the target, see :meth:`cut_to_budget`; the penalty goes by the search's own rates.
    """

    reads: Collection[str] = ("keep", "penalty", "rate_init")
    uniform = False

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        self.reached: int | None = None

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        del generator
        target = self.settings.keep
        check_keep(target)
        names = list(maskable_layers(model))
        match self.settings.rate_init:
            case "uniform":
                initial = [max(0.1, target)] * len(names)
            case "target":
                initial = [target] * len(names)
            case list() as initial:
                if len(initial) != len(names):
                    raise InputError(f"rate_init lists {len(initial)} keep rates for {len(names)} masked layers")
        keeps = dict(zip(names, initial, strict=True))

        def make(name: str, layer: Layer) -> ScoreMask:
            rate = nn.Parameter(rate_of(min(keeps[name], LARGEST_START), self.keep_min).to(layer.weight))
            return ScoreMask(scaled_scores(layer.weight), target, rate, self.keep_min)

        attach_masks(model, make)

    @property
    def keep_min(self) -> float:
        """The least that any layer keeps."""
        return keep_floor(self.settings.keep)

    def excess(self, model: nn.Module) -> Tensor:
        """Compute ``kept / target - 1`` over all masked layers, differentiable in the rates."""
        layers = list(score_masks(model).values())
        kept = torch.stack([k * mask.scores.numel() for mask in layers if (k := mask.keep_rate()) is not None]).sum()
        return kept / (self.settings.keep * sum(mask.scores.numel() for mask in layers)) - 1

    def penalty(self, model: nn.Module, epoch: int) -> Tensor:
        factor = (epoch if self.reached is None else self.reached) + 1
        return self.settings.penalty * factor * self.excess(model).clamp_min(0)

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        if self.reached is None and round(self.excess(model).item(), 4) <= 0:
            self.reached = epoch

    @torch.no_grad()
    def cut_to_budget(self, model: nn.Module) -> bool:
        """Scale all k by one factor, none below k_min, so that exactly the budget is kept."""
        layers = list(score_masks(model).values())
        sizes = [mask.scores.numel() for mask in layers]
        if sum(mask.n_keep for mask in layers) == sum(sizes) - n_dropped(sum(sizes), self.settings.keep):
            return False
        counts = scaled_counts([mask.keep for mask in layers], sizes, self.settings.keep, self.keep_min)
        for mask, size, count in zip(layers, sizes, counts, strict=True):
            # Half an entry inside the count, so that rounding r to float32 cannot change it.
            rate = rate_of(1 - (size - count + 0.5) / size, self.keep_min)
            mask.set_rate(rate)
        return True

    def warnings(self) -> list[str]:
        if self.reached is not None:
            return []
        return ["the keep rates never came down to the budget, each epoch's mask was cut to it: raise method.penalty"]

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reached = state["reached"]


def keep_floor(target: float) -> float:
    """Return HARP's k_min, the least that any layer keeps."""
    return 0.1 * target


def rate_of(keep: float, keep_min: float) -> Tensor:
    """Compute the rate r (float64 scalar) at which a layer keeps ``keep``: the inverse of HARP's sigmoid."""
    share = torch.tensor((keep - keep_min) / (1 - keep_min), dtype=torch.float64)
    return share.clamp(LEAST, 1 - LEAST).logit()


def scaled_counts(keeps: list[float], sizes: list[int], target: float, keep_min: float) -> list[int]:
    """Count the entries each layer keeps when all keep rates are scaled by one factor to the exact budget.

    Args:
        keeps, sizes: keep rate and number of entries of each layer.
        target: the network's keep rate; the budget is ``n - int((1 - target) * n)`` of its n entries.
        keep_min: no layer goes below this rate.

    Returns:
        One count for each layer, which add up to the budget.
    """
    total = sum(sizes)
    budget = total - n_dropped(total, target)
    # What each layer keeps at the lowest possible rate.
    floors = [n - n_dropped(n, keep_min + LEAST * (1 - keep_min)) for n in sizes]

    def kept(factor: float) -> list[float]:
        scaled = zip(keeps, sizes, floors, strict=True)
        return [max(n * min(factor * k, 1.0), float(floor)) for k, n, floor in scaled]

    low, high = 0.0, 1 / min(keeps)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle)) <= budget else (low, middle)
    exact = kept(low)
    counts = [int(count) for count in exact]
    by_fraction = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_fraction[: budget - sum(counts)]:
        counts[i] += 1
    return counts
