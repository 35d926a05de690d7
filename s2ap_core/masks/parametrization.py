"""Masks as parametrizations of a layer's weight: by scores, by channel scores, or fixed."""

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.topk import n_dropped, straight_through_topk


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
        """Return HARP's differentiable k, a float64 scalar; None where k is fixed."""
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

    def _count(self) -> int | Tensor:
        """Count the scores kept: where a rate is learned on a GPU, a scalar there, since reading it would wait."""
        rate = self.keep_rate()
        if rate is None or not rate.is_cuda:
            return self.n_keep
        numel = self.scores.numel()
        return numel - ((1 - rate.detach()) * numel).long()

    @torch.no_grad()
    def set_rate(self, rate: Tensor) -> None:
        """Set HARP's rate r, in place."""
        assert self.rate is not None
        self.rate.copy_(rate)

    def mask(self) -> Tensor:
        """Compute the binary mask, of the scores' shape, with its straight-through gradient."""
        return straight_through_topk(self.scores.abs(), self.keep_rate(), self._count())

    @torch.no_grad()
    def select(self, magnitude: Tensor) -> Tensor:
        """Compute the mask that other magnitudes, of the scores' shape, would have at the keep rate in force."""
        return straight_through_topk(magnitude, None, self._count())

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


class ChannelMask(ScoreMask):
    """Parametrization ``w -> w * M(s, k)`` with one score per input channel of the layer.

    ``round(k * C)`` of the C channels stay, at least one. What a checkpoint needs in order to build the
    mask again are buffers of it.

    Args:
        scores: [1, C, 1, 1] for a Conv2d, [1, C] for a Linear.
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

    def _count(self) -> int:
        return self.n_keep

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
