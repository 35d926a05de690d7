"""Images normalised within a network, as some published networks do, so that attacks see images in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of CIFAR-10's training images by channel."""


class Normalize(nn.Module):
    """Maps images x [N, C, H, W] to (x - mean) / std, by channel. Its numbers are no part of a state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def normalizing(channels: int, mean: list[float] | None, std: list[float] | None) -> Normalize | None:
    """Make the layer that normalises images of so many channels; None where nothing is to be normalised.

    Raises:
        InputError: if there is not a mean and a positive standard deviation for each channel.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None or not len(mean) == len(std) == channels or not all(s > 0 for s in std):
        raise InputError(
            f"mean = {mean}, std = {std}: give a mean and a deviation above 0 for each of {channels} channels"
        )
    return Normalize(mean, std)
