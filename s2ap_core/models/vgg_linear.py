"""VGG-16 that ends in one linear layer, with the module names of RADMM, TwinRep, FlyingBird and Robust Bird."""

import torch
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.image_statistics import normalizing
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import normalization
from s2ap_core.models.vgg import STAGES, feature_layers


class VGG16Linear(nn.Module):
    """Thirteen convolutions, a pool after each of five stages and one linear layer.

    Args:
        classes: number of logits.
        width: channels of the first stage.
        input_size: pools that would leave less than 2x2 are dropped; the last takes the largest of what there is.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
        bias: whether the convolutions have one.
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
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalizing(input_channels, mean, std)
        layers = feature_layers(width, input_size, input_channels, normalization(norm, norm_affine), bias=bias)
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1))
        self.classifier = nn.Linear(STAGES[-1] * width, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.normalize is None else self.normalize(x)
        return self.classifier(torch.flatten(self.features(x), 1))
