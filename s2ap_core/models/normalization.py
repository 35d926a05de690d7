"""Normalisation layers of the convolutional networks: by the batch, or by groups of channels of each image."""

from collections.abc import Callable
from functools import partial
from typing import get_args

from torch import nn

from s2ap_core.config import NetworkNorm
from s2ap_core.errors import InputError

MOST_GROUPS = 32
"""As Wu & He (2018) have it in wide layers."""

CHANNELS_IN_A_GROUP = 8
"""The fewest channels of a group, where there are as many.

A pruned channel without a weight is a constant 0. Alone in its group it would be divided by sqrt(eps), as BatchNorm
does it; among others it has their variance. Networks of width 8 thus have one group in their narrowest layers.
"""


def groups_of(channels: int) -> int:
    """Choose a layer's number of groups: the largest divisor of ``channels`` up to 32 that leaves 8 in each, or 1.

    >>> [groups_of(channels) for channels in (2, 8, 24, 64, 512)]
    [1, 1, 3, 8, 32]
    """
    most = min(MOST_GROUPS, channels // CHANNELS_IN_A_GROUP)
    return next((groups for groups in range(most, 1, -1) if channels % groups == 0), 1)


MakesNorm = Callable[[int], nn.Module]
"""Makes a normalisation layer of so many channels."""


def normalization(norm: NetworkNorm, affine: bool) -> MakesNorm:
    """Return what makes the normalisation layer of so many channels, [N, C, H, W] to the same shape.

    Args:
        affine: whether it scales and shifts each channel.

    Raises:
        InputError: if there is no such ``norm``.
    """
    if norm not in get_args(NetworkNorm):
        raise InputError(f"network.norm = {norm!r}: choose one of {', '.join(get_args(NetworkNorm))}")
    if norm == "batch":
        return partial(nn.BatchNorm2d, affine=affine)
    return lambda channels: nn.GroupNorm(groups_of(channels), channels, affine=affine)
