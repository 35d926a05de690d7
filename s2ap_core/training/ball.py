"""The ball that a perturbation stays in: which layers it moves, and how far."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from s2ap_core.config import MinimizerSettings
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import mask_of, masked_layers, raw_weight
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_core.masks.topk import kth_smallest
from s2ap_core.seeds import generator


@dataclass(frozen=True)
class PerturbedLayer:
    """One layer's perturbed tensor, the norm of it that the radius is a multiple of; of scores also mask and weight."""

    tensor: nn.Parameter
    norm: Callable[[], Tensor]
    mask: ScoreMask | None = None
    weight: nn.Parameter | None = None

    def kept(self) -> Tensor:
        """Compute which scores the mask selects, as booleans of their shape."""
        assert self.mask is not None
        return self.mask.select(self.tensor.detach().abs()).bool()

    def pulled(self, gradient: Tensor) -> Tensor:
        """Turn the gradient in the layer's masked weights into that in its scores."""
        assert self.mask is not None
        assert self.weight is not None
        return self.mask.score_gradient(self.weight, gradient)


def score_layers(model: nn.Module) -> list[PerturbedLayer]:
    """Collect the scores of each masked layer; HARP's rates are not perturbed."""
    layers = [(layer, mask_of(layer)) for layer in masked_layers(model).values()]
    return [
        PerturbedLayer(mask.scores, mask.scores.norm, mask, raw_weight(layer))
        for layer, mask in layers
        if isinstance(mask, ScoreMask)
    ]


def weight_layers(model: nn.Module) -> list[PerturbedLayer]:
    """Collect the weights of each masked layer; their norm is that of ``w * m``, as is their gradient."""
    return [PerturbedLayer(raw_weight(layer), _masked_norm(layer)) for layer in masked_layers(model).values()]


def _masked_norm(layer: Layer) -> Callable[[], Tensor]:
    return lambda: (raw_weight(layer) * mask_of(layer).mask()).norm()


class Radius(Protocol):
    """How long each layer's perturbation may be."""

    def __call__(self, layers: Sequence[PerturbedLayer], ascent: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Return a radius, a scalar, for each layer; ``ascent`` is where z goes, of any length, ``seed`` of draws."""

    def learn(self, loss: Tensor, perturbed_loss: Tensor) -> None:
        """Take note of L(s) and L(s + z); the first is NaN where it was not computed."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors from which :meth:`load_state_dict` goes on after an epoch."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""


class _Fixed:
    """A radius that learns nothing."""

    def learn(self, loss: Tensor, perturbed_loss: Tensor) -> None:
        """Stay as it is."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Stay as it is."""


@dataclass(frozen=True)
class Relative(_Fixed):
    """``gamma |s_l|``, the paper's (Eq. 5 and 7)."""

    gamma: float

    def __call__(self, layers: Sequence[PerturbedLayer], ascent: Sequence[Tensor], seed: int) -> list[Tensor]:
        return [self.gamma * layer.norm().detach() for layer in layers]

    def __str__(self) -> str:
        return f"{self.gamma}"


@dataclass(frozen=True)
class Flips(_Fixed):
    """The smallest radius at which s + z keeps other entries than s: ``share k_l`` of the k_l kept.

    z acts through the mask bits that it flips alone, so this asks for them instead of a length. A broken number is
    rounded up as often as its fraction says, by a draw: in layers of few entries one swap at every iteration would be
    many times the share.
    """

    share: float

    def __call__(self, layers: Sequence[PerturbedLayer], ascent: Sequence[Tensor], seed: int) -> list[Tensor]:
        draws = torch.rand(len(layers), generator=generator("cpu", seed, "swaps"))
        kept = [layer.kept() for layer in layers]
        counts = torch.stack([bits.sum() for bits in kept])
        wished = (self.share * counts + draws.to(counts.device, non_blocking=True)).floor()
        return list(radii_of_swaps(layers, kept, ascent, wished).unbind())

    def __str__(self) -> str:
        return f"flips, {self.share}"


RISE_STEP = 1.0
"""eta of :class:`Rise`: an excess of a tenth changes gamma by a tenth."""

RISE_START = 0.01
"""gamma that :class:`Rise` begins with."""


RISE_BOUNDS = (math.log(1e-6), 0.0)
"""log gamma stays within them: at 1 a perturbation is as long as the scores."""


class Rise:
    """``gamma |s_l|``, where gamma follows a relative rise of the loss, kappa.

    After each iteration ``log gamma += eta (kappa - (L(s + z) - L(s)) / L(s))``, by 1 at most.

    Attributes:
        log_gamma: a scalar on the device of the layers, so that nothing waits for it.
    """

    def __init__(self, kappa: float) -> None:
        self.kappa = kappa
        self.log_gamma = torch.tensor(math.log(RISE_START), dtype=torch.float64)

    def __call__(self, layers: Sequence[PerturbedLayer], ascent: Sequence[Tensor], seed: int) -> list[Tensor]:
        self.log_gamma = self.log_gamma.to(ascent[0].device)
        return [(self.log_gamma.exp() * layer.norm().detach()).to(layer.tensor.dtype) for layer in layers]

    def learn(self, loss: Tensor, perturbed_loss: Tensor) -> None:
        """Move gamma; stay where a loss is not finite."""
        rise = (perturbed_loss - loss).double() / loss.double()
        step = (RISE_STEP * (self.kappa - rise)).clamp(-1, 1)  # a loss near 0 makes any rise large
        self.log_gamma = (self.log_gamma + torch.where(rise.isfinite(), step, 0.0)).clamp(*RISE_BOUNDS)

    def state_dict(self) -> dict[str, Tensor]:
        return {"log_gamma": self.log_gamma}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.log_gamma = state["log_gamma"]

    def __str__(self) -> str:
        return f"rise, {self.kappa}, now {self.log_gamma.exp().item():.3g}"


SELECTIONS = 6
"""Masks of a layer that :func:`radii_of_swaps` selects at most, besides the one in force."""


CLOSE = 1.1
"""Swaps over those wished for at which the search for a radius may end."""


@torch.no_grad()
def radii_of_swaps(
    layers: Sequence[PerturbedLayer], kept: Sequence[Tensor], ascent: Sequence[Tensor], swaps: Tensor
) -> Tensor:
    """Find about the smallest radii at which layers keep so many other entries.

    Where each entry would cross today's threshold gives a first radius; the threshold itself moves, so the masks at a
    few radii, between one that is too small and one that is not, find the rest. Nothing is read back from a GPU.

    Args:
        layers: of scores, which are where they are without the perturbation.
        kept: which of them the masks in force select.
        ascent: the directions, of the scores' shapes.
        swaps: [layers], entries that are to leave each mask, as many enter; whole numbers.

    Returns:
        [layers]; 0 where no swap is wished for, the direction is 0 or not finite, or no entry can change.
    """
    on_cpu = swaps.device.type == "cpu"  # elsewhere looking at a value would wait
    lengths = torch.stack([direction.norm() for direction in ascent])
    possible = (swaps > 0) & (lengths > 0) & lengths.isfinite()
    sought = possible.nonzero().flatten().tolist() if on_cpu else list(range(len(layers)))
    swaps = swaps.clamp(min=1)

    def swapped(i: int, radius: Tensor) -> Tensor:
        mask, scores = layers[i].mask, layers[i].tensor.detach()
        assert mask is not None
        return (mask.select((scores + radius / lengths[i] * ascent[i]).abs()).bool() & ~kept[i]).sum()

    radii = torch.zeros_like(lengths)
    for i in sought:
        radii[i] = _first_radius(layers[i], kept[i], ascent[i], lengths[i], swaps[i])
    low, at_low = torch.zeros_like(radii), torch.zeros_like(swaps)
    high, at_high = torch.full_like(radii, math.inf), swaps.clone()
    for _ in range(SELECTIONS):
        found = at_high.clone()
        for i in sought:
            found[i] = swapped(i, radii[i])
        enough = found >= swaps
        high, at_high = torch.where(enough, radii, high), torch.where(enough, found, at_high)
        low, at_low = torch.where(enough, low, radii), torch.where(enough, at_low, found)
        # Along the line between the two, by a part of the way at least; beyond the larger where both are too small.
        way = ((swaps - at_low) / (at_high - at_low).clamp(min=1)).clamp(0.1, 0.9)
        beyond = low * (1.2 * swaps / found.clamp(min=0.1)).clamp(1.1, 4)
        radii = torch.where(high.isfinite(), low + way * (high - low), beyond)
        if on_cpu:
            close = (at_high <= CLOSE * swaps) & high.isfinite()
            radii = torch.where(close, high, radii)
            sought = [i for i in sought if not close[i]]
            if not sought:
                break
    return torch.where(possible, torch.where(high.isfinite(), high, low), 0.0)


def _first_radius(layer: PerturbedLayer, kept: Tensor, ascent: Tensor, length: Tensor, swaps: Tensor) -> Tensor:
    """Find the radius at which twice so many entries cross the threshold of today, half of them out and half in."""
    assert layer.mask is not None
    stride = _stride(swaps) if swaps.device.type == "cpu" else 1
    parts = zip(*(layer.mask.split(t) for t in (layer.tensor.detach(), ascent, kept)), strict=True)
    crossing = torch.cat([_crossings(*(t.flatten()[::stride] for t in part)) for part in parts]) * length
    both, out = kth_smallest(crossing, (torch.stack([2 * swaps, swaps]) / stride).ceil()).unbind()
    # Of few entries as many may not cross.
    return torch.where(both.isfinite(), both, torch.where(out.isfinite(), out, 0.0))


SAMPLED_SWAPS = 64
"""Swaps that the first radius is found from, where a layer is large enough to look at a part of it."""


def _stride(swaps: Tensor) -> int:
    """Choose of which entries one is looked at: a prime, so that no tap of a kernel is left out."""
    return next((prime for prime in (31, 13, 7, 3) if swaps >= prime * SAMPLED_SWAPS / 2), 1)


def _crossings(scores: Tensor, direction: Tensor, kept: Tensor) -> Tensor:
    """Compute at which radius each entry crosses its part's threshold of today, midway between the two beside it."""
    magnitude = scores.abs()
    weakest = torch.where(kept, magnitude, math.inf).min()
    strongest = torch.where(kept, -math.inf, magnitude).max()
    threshold = (weakest + strongest) / 2
    speed = torch.where(scores < 0, -direction, direction)  # of the magnitude
    speed = torch.where(scores == 0, direction.abs(), speed)
    leaves = (magnitude - threshold) / -speed
    enters = torch.where(speed > 0, threshold - magnitude, threshold + magnitude) / speed.abs()  # or through 0
    crossing = torch.where(kept, torch.where(speed < 0, leaves, math.inf), enters)
    return torch.where(crossing.isnan(), math.inf, crossing)


def search_radius(settings: MinimizerSettings) -> Radius:
    """Build the radius that settings ask for."""
    match settings.gamma:
        case "flips":
            return Flips(settings.flips)
        case "rise":
            return Rise(settings.rise)
        case gamma:
            return Relative(gamma)
