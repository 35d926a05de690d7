"""ResNet-18 for small images (He et al. 2016), with the module names of HYDRA and HARP."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.image_statistics import normalizing
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import MakesNorm, normalization
from s2ap_core.models.small_images import strides_on

MakesBlock = Callable[[int, int, int, MakesNorm], nn.Module]
"""Of channels that come in, channels, stride and normalisation: a block."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes.

    Maps (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no stem pooling; inputs in [0, 1] are not normalised unless ``mean`` says so.

    Args:
        classes: number of logits.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        input_size: any; a stride that would leave less than 2x2 is dropped, the last pool averages what there is.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
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
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalizing(input_channels, mean, std)
        layer_norm = normalization(norm, norm_affine)
        strides = strides_on(input_size, (1, 2, 2, 2))
        self.conv1 = nn.Conv2d(input_channels, width, 3, padding=1, bias=False)
        self.bn1 = layer_norm(width)
        self.layer1 = stage(BasicBlock, width, width, strides[0], layer_norm)
        self.layer2 = stage(BasicBlock, width, 2 * width, strides[1], layer_norm)
        self.layer3 = stage(BasicBlock, 2 * width, 4 * width, strides[2], layer_norm)
        self.layer4 = stage(BasicBlock, 4 * width, 8 * width, strides[3], layer_norm)
        self.linear = nn.Linear(8 * width, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.normalize is None else self.normalize(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def stage(block: MakesBlock, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> nn.Sequential:
    """Make a stage of a ResNet-18: two blocks, of which the first changes the shape."""
    return nn.Sequential(block(channels_in, channels, stride, norm), block(channels, channels, 1, norm))
