"""VGG-16 with normalisation for small images, with the module names of HYDRA and HARP."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import MakesNorm, normalization
from s2ap_core.models.small_images import SMALLEST_MAP

POOL = 0
STAGES = (1, 1, POOL, 2, 2, POOL, 4, 4, 4, POOL, 8, 8, 8, POOL, 8, 8, 8)
"""Channels of each convolution in multiples of the width."""


def feature_layers(
    width: int, input_size: int, input_channels: int, norm: MakesNorm, *, bias: bool = False
) -> Iterator[nn.Module]:
    """Make the convolutions, each with its normalisation and a ReLU, and the pools between the stages."""
    channels, size = input_channels, input_size
    for multiple in STAGES:
        if multiple == POOL:
            # An identity in the place of a dropped pool keeps the numbers of the layers behind it.
            halves = size // 2 >= SMALLEST_MAP
            yield nn.MaxPool2d(2) if halves else nn.Identity()
            size = size // 2 if halves else size
            continue
        channels_in, channels = channels, multiple * width
        yield nn.Conv2d(channels_in, channels, 3, padding=1, bias=bias)
        yield norm(channels)
        yield nn.ReLU()


class VGG16(nn.Module):
    """Thirteen convolutions, 2x2 adaptive pooling and three linear layers; inputs are not normalised.

    Args:
        classes: number of logits.
        width: channels of the first stage; the linear layers follow in proportion, 32 * width inputs and
            two times 4 * width units.
        input_size: pools that would leave less than 2x2 of maps of this size are dropped.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
        bias: whether the convolutions have one, as PwoA's.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        input_size: int = 32,
        input_channels: int = 3,
        norm_affine: bool = True,
        norm: NetworkNorm = "batch",
        bias: bool = False,
    ) -> None:
        super().__init__()
        channels = STAGES[-1] * width
        self.features = nn.Sequential(
            *feature_layers(width, input_size, input_channels, normalization(norm, norm_affine), bias=bias)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(4 * channels, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, classes),
        )
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
