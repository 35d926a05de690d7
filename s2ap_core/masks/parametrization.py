"""Masks as parametrizations of a layer's weight: by scores, of the whole layer or of its units, or fixed."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.topk import n_dropped, select_topk, straight_through_topk


class Unit(NamedTuple):
    """Scores that share a keep rate.

    Attributes:
        keep: the rate in force.
        entries: how many they are.
        parts: into how many equal parts they are split, each of which keeps that fraction of its own scores.
    """

    keep: float
    entries: int
    parts: int


class ScoreMask(nn.Module):
    """Parametrization ``w -> w * M(s, k)`` with one score per weight.

    Args:
        scores: importance scores, of the weight's shape or broadcastable to it.
        keep: fraction k of the scores that is kept, in (0, 1].
        rate: HARP's scalar rate r; then ``k = keep_min + (1 - keep_min) * sigmoid(r)`` is learned.
        keep_min: lower end of that interval.
    """

    def __init__(self, scores: Tensor, keep: float, rate: nn.Parameter | None = None, keep_min: float = 0.0) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self._keep = keep
        self.keep_min = keep_min
        self.rate: nn.Parameter | None
        self.register_parameter("rate", rate)

    def keep_rate(self) -> Tensor | None:
        """Return HARP's differentiable k, a float64 scalar, or one for each unit; None where k is fixed."""
        if self.rate is None:
            return None
        return self.keep_min + (1 - self.keep_min) * self.rate.double().sigmoid()

    @property
    def keep(self) -> float:
        """The keep rate in force."""
        rate = self.keep_rate()
        return self._keep if rate is None else float(rate.detach())

    @property
    def n_keep(self) -> int:
        """Number of scores kept."""
        return self.scores.numel() - n_dropped(self.scores.numel(), self.keep)

    @property
    def units(self) -> list[Unit]:
        """The units that have a keep rate each, here the whole layer."""
        return [Unit(self.keep, self.scores.numel(), 1)]

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """Split a tensor of the scores' shape into the parts within which scores compete: runs of whole rows."""
        return (values,)

    def expected(self) -> Tensor | None:
        """Compute how many scores HARP's rates keep, a float64 scalar with its gradient; None where k is fixed."""
        rate = self.keep_rate()
        return None if rate is None else rate * self.scores.numel()

    def _count(self) -> int | Tensor:
        """Count the scores kept: where a rate is learned off the CPU, a scalar there, since reading it would wait."""
        rate = self.keep_rate()
        if rate is None or rate.device.type == "cpu":
            return self.n_keep
        numel = self.scores.numel()
        return numel - ((1 - rate.detach()) * numel).long()

    @torch.no_grad()
    def set_rate(self, rate: Tensor) -> None:
        """Set HARP's rate r, of the rate's shape, in place."""
        assert self.rate is not None
        self.rate.copy_(rate)

    def mask(self) -> Tensor:
        """Compute the binary mask, of the scores' shape, with its straight-through gradient."""
        return straight_through_topk(self.scores, self.keep_rate(), self._count())

    @torch.no_grad()
    def select(self, magnitude: Tensor) -> Tensor:
        """Compute the mask that other magnitudes, of the scores' shape, would have at the keep rate in force."""
        return select_topk(magnitude, self._count())

    @torch.no_grad()
    def score_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Pull a gradient in ``w * m`` straight through the selection: that in the scores, of their shape."""
        return (gradient * weight).sum_to_size(self.scores.shape) * self.scores.sign()

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask()


class LayerMask(ScoreMask):
    """Parametrization ``w -> w * M(s, k)`` with a keep rate of the layer's own, which may be 0 and is saved with it.

    Args:
        scores: importance scores, of the weight's shape.
        keep: fraction k of the scores that is kept, in [0, 1]; ``round(k * n)`` of the n scores stay.
    """

    nominal_keep: Tensor

    def __init__(self, scores: Tensor, keep: float) -> None:
        super().__init__(scores, keep)
        self.register_buffer("nominal_keep", torch.tensor(keep, dtype=torch.float64))

    @property
    def keep(self) -> float:
        """The keep rate in force."""
        return float(self.nominal_keep)

    @property
    def n_keep(self) -> int:
        """Number of scores kept."""
        return round(self.keep * self.scores.numel())

    def _count(self) -> int | Tensor:
        if self.nominal_keep.device.type == "cpu":
            return self.n_keep
        return (self.nominal_keep * self.scores.numel()).round().long()


class UnitMask(ScoreMask):
    """Parametrization ``w -> w * M(s, k)`` of a layer that packs several maps, with a learned rate for each unit.

    The rows of the weight are P equal parts. Each belongs to a unit, whose rate it keeps of its own scores, so that
    parts of one unit are tied.

    Args:
        scores: importance scores, of the weight's shape.
        keep: the target that ``keep_min`` belongs to.
        unit_of_part: number of the unit of each of the P parts, counted from 0.
        rate: HARP's rates r, one for each unit.
        keep_min: as for :class:`ScoreMask`.
    """

    unit: Tensor

    def __init__(
        self, scores: Tensor, keep: float, unit_of_part: Sequence[int], rate: nn.Parameter, keep_min: float
    ) -> None:
        super().__init__(scores, keep, rate, keep_min)
        self.unit_of_part = tuple(unit_of_part)  # beside the buffer that files hold: reading a GPU's would wait
        self.register_buffer("unit", torch.tensor(self.unit_of_part))

    @property
    def keep(self) -> float:
        """The fraction kept of the whole layer."""
        return self.n_keep / self.scores.numel()

    @property
    def n_keep(self) -> int:
        """Number of scores kept."""
        size = self._part_size
        return sum(unit.parts * (size - n_dropped(size, unit.keep)) for unit in self.units)

    @property
    def units(self) -> list[Unit]:
        """The units that have a keep rate each."""
        keeps = self._keep_rates().tolist()
        parts = [self.unit_of_part.count(unit) for unit in range(len(keeps))]
        return [Unit(k, n * self._part_size, n) for k, n in zip(keeps, parts, strict=True)]

    def split(self, values: Tensor) -> Sequence[Tensor]:
        return values.chunk(len(self.unit_of_part))

    def expected(self) -> Tensor:
        rates = self._keep_rates().unbind()
        return torch.stack([rates[unit] * self._part_size for unit in self.unit_of_part]).sum()

    def mask(self) -> Tensor:
        keeps = self._keep_rates().unbind()
        return torch.cat(
            [
                straight_through_topk(part, keeps[unit], count)
                for part, unit, count in zip(self.split(self.scores), self.unit_of_part, self._counts(), strict=True)
            ]
        )

    @torch.no_grad()
    def select(self, magnitude: Tensor) -> Tensor:
        return torch.cat(list(map(select_topk, self.split(magnitude), self._counts())))

    @property
    def _part_size(self) -> int:
        return self.scores.numel() // len(self.unit_of_part)

    def _keep_rates(self) -> Tensor:
        rates = self.keep_rate()
        assert rates is not None
        return rates

    def _counts(self) -> Sequence[int | Tensor]:
        """Count the scores kept of each part."""
        size, rates = self._part_size, self._keep_rates().detach()
        dropped = ((1 - rates) * size).long()
        counts = (size - dropped).unbind() if rates.device.type != "cpu" else [size - n for n in dropped.tolist()]
        return [counts[unit] for unit in self.unit_of_part]


class ChannelMask(ScoreMask):
    """Parametrization ``w -> w * M(s, k)`` with one score per input channel of the layer.

    ``round(k * C)`` of the C channels stay, at least one. What a checkpoint needs in order to build the
    mask again are buffers of it.

    Args:
        scores: [1, C, 1, 1] for a Conv2d, [1, C] for a Linear, [C, 1, 1, 1] for a ConvTranspose2d.
        keep: fraction k of the channels that is kept, in (0, 1]; with ``rate``, the target that ``keep_min``
            belongs to.
        group: number of the tensor that the layer reads; layers with the same one share their rate.
        rate, keep_min: as for :class:`ScoreMask`.
    """

    nominal_keep: Tensor
    group: Tensor

    def __init__(
        self, scores: Tensor, keep: float, group: int, rate: nn.Parameter | None = None, keep_min: float = 0.0
    ) -> None:
        super().__init__(scores, keep, rate, keep_min)
        self.register_buffer("nominal_keep", torch.tensor(keep, dtype=torch.float64))
        self.register_buffer("group", torch.tensor(group))

    @property
    def keep(self) -> float:
        """The keep rate in force."""
        return float(self.nominal_keep) if self.rate is None else super().keep

    @property
    def n_keep(self) -> int:
        """Number of channels kept."""
        return self.count(self.keep)

    def _count(self) -> int | Tensor:
        rate = self.keep_rate()
        keep = self.nominal_keep if rate is None else rate.detach()
        if keep.device.type == "cpu":
            return self.n_keep
        return (keep * self.scores.numel()).round().clamp(min=1).long()

    def count(self, keep: float) -> int:
        """Count the channels that a keep rate keeps."""
        return max(1, round(keep * self.scores.numel()))


class FixedMask(nn.Module):
    """Parametrization ``w -> w * m`` with a mask that stays, as in finetuning."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask_bits: Tensor
        self.register_buffer("mask_bits", mask.bool())

    def mask(self) -> Tensor:
        """Return the mask, boolean, of the weight's shape."""
        return self.mask_bits

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask_bits


Mask = ScoreMask | FixedMask


def check_keep(keep: float) -> None:
    """Raise InputError unless ``keep`` lies in (0, 1]."""
    if not 0 < keep <= 1:  # also false for NaN
        raise InputError(f"keep = {keep}: the fraction of weights kept must lie in (0, 1]")
