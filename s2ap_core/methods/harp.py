"""HARP (Zhao & Wressnegger 2023): HYDRA's scores, and a learned keep rate for each layer."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_core.config import MethodSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import scaled_scores
from s2ap_core.masks.parametrization import ScoreMask, Unit, UnitMask, check_keep
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
        packed, own = self.packed(model), self.own_keeps(model)
        rates = {name: max(packed.get(name, (0,))) + 1 for name in self.layers(model) if name not in own}
        keeps = iter(self._initial_keeps(sum(rates.values())))

        def make(name: str, layer: Layer) -> ScoreMask:
            if name not in rates:
                return ScoreMask(scaled_scores(layer), target)
            initial = [rate_of(min(next(keeps), LARGEST_START), self.keep_min) for _ in range(rates[name])]
            start = torch.stack(initial).to(layer.weight)
            if name in packed:
                return UnitMask(scaled_scores(layer), target, packed[name], nn.Parameter(start), self.keep_min)
            return ScoreMask(scaled_scores(layer), target, nn.Parameter(start[0].clone()), self.keep_min)

        self.mask_layers(model, make)

    def packed(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Name the layers that pack several units: the unit, from 0, of each of their equal parts of rows."""
        del model
        return {}

    def _initial_keeps(self, count: int) -> list[float]:
        target = self.settings.keep
        match self.settings.rate_init:
            case "uniform":
                return [max(0.1, target)] * count
            case "target":
                return [target] * count
            case list() as initial:
                if len(initial) != count:
                    raise InputError(f"rate_init lists {len(initial)} keep rates for {count} masked layers or units")
                return initial

    @property
    def keep_min(self) -> float:
        """The least that any layer keeps."""
        return keep_floor(self.settings.keep)

    def excess(self, model: nn.Module) -> Tensor:
        """Compute ``kept / target - 1`` over all layers that have a rate, differentiable in the rates."""
        layers = learned_masks(model)
        kept = torch.stack([k for mask in layers if (k := mask.expected()) is not None]).sum()
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
        layers = learned_masks(model)
        total = sum(mask.scores.numel() for mask in layers)
        if sum(mask.n_keep for mask in layers) == total - n_dropped(total, self.settings.keep):
            return False
        counts = iter(scaled_counts([u for mask in layers for u in mask.units], self.settings.keep, self.keep_min))
        for mask in layers:
            rates = []
            for unit, count in zip(mask.units, counts, strict=False):
                size, kept = unit.entries // unit.parts, count // unit.parts
                # Half an entry inside the count, so that rounding r to float32 cannot change it.
                rates.append(rate_of(1 - (size - kept + 0.5) / size, self.keep_min))
            assert mask.rate is not None
            mask.set_rate(torch.stack(rates).view(mask.rate.shape))
        return True

    def warnings(self) -> list[str]:
        if self.reached is not None:
            return []
        return ["the keep rates never came down to the budget, each epoch's mask was cut to it: raise method.penalty"]

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reached = state["reached"]


def learned_masks(model: nn.Module) -> list[ScoreMask]:
    """Collect the masks of the layers that have a learned rate."""
    return [mask for mask in score_masks(model).values() if mask.rate is not None]


def keep_floor(target: float) -> float:
    """Return HARP's k_min, the least that any layer keeps."""
    return 0.1 * target


def rate_of(keep: float, keep_min: float) -> Tensor:
    """Compute the rate r (float64 scalar) at which a layer keeps ``keep``: the inverse of HARP's sigmoid."""
    share = torch.tensor((keep - keep_min) / (1 - keep_min), dtype=torch.float64)
    return share.clamp(LEAST, 1 - LEAST).logit()


def scaled_counts(units: Sequence[Unit], target: float, keep_min: float) -> list[int]:
    """Count the entries each unit keeps when all keep rates are scaled by one factor to the exact budget.

    Args:
        units: with their keep rates; what one keeps is a multiple of its parts.
        target: the network's keep rate; the budget is ``n - int((1 - target) * n)`` of its n entries.
        keep_min: no unit goes below this rate.

    Returns:
        One count for each unit. They add up to the budget, unless every unit of a single part is full or empty.
    """
    total = sum(unit.entries for unit in units)
    budget = total - n_dropped(total, target)
    sizes = [unit.entries // unit.parts for unit in units]
    # What each unit keeps at the lowest possible rate.
    least = keep_min + LEAST * (1 - keep_min)
    floors = [unit.parts * (n - n_dropped(n, least)) for unit, n in zip(units, sizes, strict=True)]

    def kept(factor: float) -> list[float]:
        return [max(u.entries * min(factor * u.keep, 1.0), float(f)) for u, f in zip(units, floors, strict=True)]

    low, high = 0.0, 1 / min(unit.keep for unit in units)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle)) <= budget else (low, middle)
    return whole_counts(kept(low), budget, [unit.parts for unit in units], [unit.entries for unit in units])


def whole_counts(exact: Sequence[float], budget: int, steps: Sequence[int], most: Sequence[int]) -> list[int]:
    """Round counts that add up to a budget to whole numbers that do: down, then up by the largest remainders.

    Args:
        exact: the counts.
        steps: each is rounded to a multiple of its step.
        most: no count goes above it.
    """
    counts = [int(count / step) * step for count, step in zip(exact, steps, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - exact[i]) / steps[i])
    left = budget - sum(counts)
    while left:
        before = left
        for i in by_remainder:
            if steps[i] <= left and counts[i] + steps[i] <= most[i]:
                counts[i] += steps[i]
                left -= steps[i]
        if left == before:
            break
    return counts
