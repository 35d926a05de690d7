"""The scores of channels that keep no weight, whose curvature is 1 / eps in disguise."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s2ap_core.masks.layers import masked_layers
from s2ap_core.masks.masking import dead_channels
from s2ap_diag.curvature.hessian import chosen_masks, flatten


@dataclass(frozen=True)
class DeadScores:
    """The scores of dead channels: output channels of a masked layer that keep no weight.

    Every score of such a channel is dead, whatever comes after the layer. It is before BatchNorm that it matters:
    the channel is a constant 0 there, is divided by sqrt(eps), and so has a curvature of the order of 1/eps. Where
    there is one score for each input channel, no output channel is ever without weights.

    Attributes:
        channels: how many channels are dead.
        where: boolean [n], in the order of :class:`s2ap_diag.curvature.hessian.ScoreHessian`.
    """

    channels: int
    where: Tensor = field(repr=False)

    def share(self, vector: Tensor) -> float:
        """Compute the part of a vector's [n] squared norm, which is 1, that lies on dead scores."""
        return float(vector[self.where].square().sum())


@torch.no_grad()
def dead_scores(model: nn.Module, layers: Sequence[str] | None = None) -> DeadScores:
    """Find the scores that are dead under the masks in force, of the named layers or of all.

    Raises:
        InputError: as :func:`chosen_masks`.
    """
    channels, where, of_name = 0, [], masked_layers(model)
    for name, mask in chosen_masks(model, layers).items():
        dead = dead_channels(of_name[name], mask.mask())
        channels += int(dead.sum())
        where.append(of_name[name].spread(dead, mask.scores))
    return DeadScores(channels, flatten(where))
