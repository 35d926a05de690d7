"""HYDRA and HARP on channels: one score for each input channel of a layer, a budget in FLOPs.

The budget is a share of the dense network's FLOPs (multiply-accumulates of convolutions and linear layers
for one image), counted on the network that remains: what a layer's mask drops is removed from the layers that
produce it, if no other consumer keeps it. See :mod:`s2ap_core.masks.channel_graph`.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from s2ap_core.config import MethodSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.channel_graph import ChannelGraph
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import attach_masks
from s2ap_core.masks.parametrization import ChannelMask
from s2ap_core.masks.topk import topk_mask
from s2ap_core.methods.base import Method
from s2ap_core.methods.harp import LARGEST_START, Harp, keep_floor, rate_of


def channel_scores(weight: Tensor, input_dim: int = 1) -> Tensor:
    """Compute the first scores: ``sqrt(6) * a / max(a)``, a the sum of ``|w|`` over each input channel.

    HYDRA's and HARP's formula with a fan-in of 1, which the published code takes from a placeholder. Its
    reshape then sums over the output channels' entries instead of the input channels'; this does not.

    Args:
        weight: [C_out, C_in, ...], for instance [C_out, C_in, H, W] or [C_out, C_in].
        input_dim: 0 for [C_in, C_out, ...], the weight of a transposed convolution.

    Returns:
        Of the weight's shape, but 1 in all other dimensions: [1, C_in, 1, 1] or [1, C_in].
    """
    others = [dim for dim in range(weight.dim()) if dim != input_dim]
    sums = weight.detach().abs().sum(others, keepdim=True)
    return 6**0.5 * sums / sums.max().clamp_min(torch.finfo(weight.dtype).tiny)


def channel_masks(model: nn.Module) -> dict[str, ChannelMask]:
    """Collect the channel mask of each layer that has one, by layer name."""
    return {name: mask for name, mask in score_masks(model).items() if isinstance(mask, ChannelMask)}


class ChannelMethod(Method):
    """What HYDRA and HARP on channels share. ``image_shape`` has to be set before :meth:`attach`.

    Layers that read the image itself are not masked.

    Attributes:
        graph: who consumes whose channels, once attached.

    Raises:
        InputError: if ``settings`` have no ``flops_reduction``.
    """

    counts_flops = True
    uniform = False
    graph: ChannelGraph

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        if settings.flops_reduction is None:
            raise InputError(f"method.flops_reduction is not set: {settings.name} needs it, such as 4 for 4x fewer")
        self.reduction = settings.flops_reduction

    @property
    def target(self) -> float:
        """The most FLOPs that may remain."""
        return self.graph.dense_flops / self.reduction

    def _attach(self, model: nn.Module, make: Callable[[Tensor, int], ChannelMask]) -> None:
        """Mask each layer that can be with ``make(scores, group)``."""
        if self.image_shape is None:
            raise ValueError("image_shape is not set: FLOPs depend on it")
        self.graph = ChannelGraph(model, self.image_shape)
        layers = {
            name: layer for name, layer in self.graph.layers.items() if layer.prunable and name in self.layers(model)
        }
        if not layers:
            raise InputError(f"method {self.settings.name}: no layer of this network has channels that can be removed")
        attach_masks(
            model,
            lambda name, layer: make(channel_scores(layer.weight, layer.input_dim), layers[name].group),
            only=layers,
        )

    def flops(self, model: nn.Module) -> Tensor:
        """Compute the FLOPs that remain under the masks: the exact number, differentiable in HARP's rates alone.

        Its derivative in a rate is that of the number of channels, ``C dk/dr``, times what a channel costs.
        """
        kept = {}
        for name, mask in channel_masks(model).items():
            kept[name] = mask.select(mask.scores.detach().abs()).flatten().double()
            rate = mask.keep_rate()
            if rate is not None:
                kept[name] = kept[name] + (rate - rate.detach())
        return self.graph.flops(kept)

    def _flops_at(self, model: nn.Module) -> Callable[[Mapping[str, int]], float]:
        """Compute the FLOPs as a function of how many channels each layer keeps, the best by its scores."""
        magnitudes = {name: mask.scores.detach().abs().flatten().cpu() for name, mask in channel_masks(model).items()}

        def flops_at(counts: Mapping[str, int]) -> float:
            return self.graph.flops({name: topk_mask(magnitudes[name], n) for name, n in counts.items()}).item()

        return flops_at

    def _largest(self, fits: Callable[[float], bool], high: float) -> float:
        """Find the largest value below ``high``, which is too large, at which the FLOPs meet the target."""
        low = 0.0
        if not fits(low):
            raise InputError(
                f"method.flops_reduction = {self.reduction:g}: not even with the fewest channels in each layer"
                " are there so few FLOPs; lower it"
            )
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


class HydraChannels(ChannelMethod):
    """HYDRA on channels: one k for all layers, the largest at which the FLOPs do not exceed the target.

    Where layers share their inputs, as in ResNets, FLOPs depend on how far their choices overlap, so that
    k is found anew after each epoch.
    """

    reads: Collection[str] = ("flops_reduction",)

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        del generator
        self._attach(model, lambda scores, group: ChannelMask(scores, 1.0, group))
        self.cut_to_budget(model)

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        self.cut_to_budget(model)

    @torch.no_grad()
    def cut_to_budget(self, model: nn.Module) -> bool:
        """Set k to the largest value at which the FLOPs do not exceed the target."""
        masks, flops_at = channel_masks(model), self._flops_at(model)
        keep = self._largest(
            lambda k: flops_at({name: mask.count(k) for name, mask in masks.items()}) <= self.target, 1.0
        )
        changed = any(mask.count(keep) != mask.n_keep for mask in masks.values())
        for mask in masks.values():
            mask.nominal_keep.fill_(keep)
        return changed


class HarpChannels(ChannelMethod, Harp):
    """HARP on channels: learned rates that start at 0.99, driven by HARP's penalty on the FLOPs.

    Layers that read the same tensor share their rate, as a block's first layer and its shortcut. HARP's
    k_min is a tenth of its target, here of the share of FLOPs.
    """

    reads: Collection[str] = ("flops_reduction", "penalty")

    @property
    def keep_min(self) -> float:
        return keep_floor(1 / self.reduction)

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        del generator
        rates: dict[int, nn.Parameter] = {}

        def make(scores: Tensor, group: int) -> ChannelMask:
            if group not in rates:
                rates[group] = nn.Parameter(rate_of(LARGEST_START, self.keep_min).to(scores))
            return ChannelMask(scores, 1 / self.reduction, group, rates[group], self.keep_min)

        self._attach(model, make)

    def excess(self, model: nn.Module) -> Tensor:
        """Compute ``FLOPs / target - 1``, differentiable in the rates."""
        return self.flops(model) / self.target - 1

    @torch.no_grad()
    def cut_to_budget(self, model: nn.Module) -> bool:
        """Bring the FLOPs as close to the target as one channel allows, from below.

        All k are scaled by one factor, none below k_min, the largest at which the FLOPs do not exceed the
        target. Then the rates that a larger factor would raise next keep one more channel each, as long as the
        target allows.
        """
        masks, flops_at = channel_masks(model), self._flops_at(model)
        groups = {int(mask.group): mask for mask in masks.values()}
        keeps = {group: mask.keep for group, mask in groups.items()}

        def scaled(factor: float) -> dict[int, int]:
            return {
                group: mask.count(min(max(factor * keeps[group], self.keep_min), 1.0)) for group, mask in groups.items()
            }

        def fits(counts: Mapping[int, int]) -> bool:
            return flops_at({name: counts[int(mask.group)] for name, mask in masks.items()}) <= self.target

        counts = scaled(self._largest(lambda factor: fits(scaled(factor)), 1 / min(keeps.values())))

        def next_factor(group: int) -> float:
            return (counts[group] + 0.5) / (keeps[group] * groups[group].scores.numel())

        def grown() -> dict[int, int] | None:
            for group in sorted(groups, key=next_factor):
                more = {**counts, group: counts[group] + 1}
                if more[group] <= groups[group].scores.numel() and fits(more):
                    return more
            return None

        while (more := grown()) is not None:
            counts = more
        if counts == {group: mask.n_keep for group, mask in groups.items()}:
            return False
        for group, mask in groups.items():
            # In the middle between two counts, so that rounding r to float32 cannot change them.
            rate = rate_of(counts[group] / mask.scores.numel(), self.keep_min)
            mask.set_rate(rate)
        return True
