"""Pre-activation ResNet-18 for small images (He et al. 2016b), with the module names of FlyingBird and Robust Bird."""

import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.image_statistics import CIFAR10, normalizing
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import MakesNorm, normalization
from s2ap_core.models.resnet_cifar import stage
from s2ap_core.models.small_images import strides_on


class PreActBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions; the shortcut is projected where the shape changes.

    Maps (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> None:
        super().__init__()
        self.bn1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.projects = stride != 1 or channels_in != channels
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (self.shortcut(active) if self.projects else x)


class PreActResNet18(nn.Module):
    """ResNet-18 of pre-activation blocks with a 3x3 stem; inputs in [0, 1] are normalised by channel.

    Args:
        classes: number of logits.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        input_size: any; a stride that would leave less than 2x2 is dropped, the last pool averages what there is.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
        mean, std: of the images by channel; None is CIFAR-10's for three channels, and nothing for others.
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
        if mean is None and std is None and input_channels == len(CIFAR10[0]):
            mean, std = map(list, CIFAR10)
        self.normalize = normalizing(input_channels, mean, std)
        layer_norm = normalization(norm, norm_affine)
        strides = strides_on(input_size, (1, 2, 2, 2))
        self.conv1 = nn.Conv2d(input_channels, width, 3, padding=1, bias=False)
        self.layer1 = stage(PreActBlock, width, width, strides[0], layer_norm)
        self.layer2 = stage(PreActBlock, width, 2 * width, strides[1], layer_norm)
        self.layer3 = stage(PreActBlock, 2 * width, 4 * width, strides[2], layer_norm)
        self.layer4 = stage(PreActBlock, 4 * width, 8 * width, strides[3], layer_norm)
        self.bn = layer_norm(8 * width)
        self.linear = nn.Linear(8 * width, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x if self.normalize is None else self.normalize(x))
        x = F.relu(self.bn(self.layer4(self.layer3(self.layer2(self.layer1(x))))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
