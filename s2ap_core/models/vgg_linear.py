"""VGG-16 that ends in one linear layer, with the module names of RADMM, TwinRep, RST, FlyingBird and Robust Bird.

MAD's and Li20's are among them by their pool, Li20's by a hidden layer, too.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.image_statistics import normalizing
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import normalization
from s2ap_core.models.vgg import STAGES, feature_layers

Pool = Literal["max", "average"]


class VGG16Linear(nn.Module):
    """Thirteen convolutions, a pool after each of five stages, a hidden layer if wanted and one linear layer.

    Args:
        classes: number of logits.
        width: channels of the first stage.
        input_size: pools that would leave less than 2x2 are dropped; the last pools what there is.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
        bias: whether the convolutions have one.
        pool: what the last pool takes of each channel.
        hidden: whether a linear layer of 8 * width units, normalised, and a ReLU stand before the last.
        mean, std: of the images by channel, which are normalised by them; None leaves the images as they are.
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
        pool: Pool = "max",
        hidden: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalizing(input_channels, mean, std)
        layers = feature_layers(width, input_size, input_channels, normalization(norm, norm_affine), bias=bias)
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1) if pool == "max" else nn.AdaptiveAvgPool2d(1))
        units = STAGES[-1] * width
        self.hidden = None
        if hidden:
            rows = (
                nn.BatchNorm1d(units, affine=norm_affine)
                if norm == "batch"
                else normalization(norm, norm_affine)(units)
            )
            self.hidden = nn.Sequential(nn.Linear(units, units), rows, nn.ReLU())
        self.classifier = nn.Linear(units, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.normalize is None else self.normalize(x)
        x = torch.flatten(self.features(x), 1)
        return self.classifier(x if self.hidden is None else self.hidden(x))
