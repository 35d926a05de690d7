"""ResNet-50 for ImageNet (He et al. 2016), with the module names of HYDRA and HARP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import MakesNorm, normalization
from s2ap_core.models.small_images import strides_on

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut, projected where the shape changes.

    Maps (N, channels_in, H, W) to (N, 4 * channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> None:
        super().__init__()
        channels_out = EXPANSION * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = norm(channels_out)
        self.downsample = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), norm(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet50(nn.Module):
    """ResNet-50 that takes inputs in [0, 1] and normalises them itself, so that attacks act on pixels.

    Mean and standard deviation are ImageNet's per channel, or their average over the channels where the
    images are not RGB. They are not part of the state dict, as in the published checkpoints.

    Args:
        classes: number of logits.
        width: channels of the first stage before expansion; the others have 2, 4 and 8 times as many.
        input_size: below 32 the stem's pool is dropped, below 16 its stride as well; of the stages' strides
            those that would leave less than 2x2.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        input_size: int = 224,
        input_channels: int = 3,
        norm_affine: bool = True,
        norm: NetworkNorm = "batch",
    ) -> None:
        super().__init__()
        for name, statistic in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = statistic if input_channels == 3 else (sum(statistic) / 3,) * input_channels
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        layer_norm = normalization(norm, norm_affine)
        stem, pool = 2 if input_size >= 16 else 1, 2 if input_size >= 32 else 1
        strides = strides_on(-(-input_size // (stem * pool)), (1, 2, 2, 2))
        self.conv1 = nn.Conv2d(input_channels, width, 7, stride=stem, padding=3, bias=False)
        self.bn1 = layer_norm(width)
        self.maxpool = nn.MaxPool2d(3, stride=pool, padding=1) if pool > 1 else nn.Identity()
        self.layer1 = _stage(3, width, width, strides[0], layer_norm)
        self.layer2 = _stage(4, EXPANSION * width, 2 * width, strides[1], layer_norm)
        self.layer3 = _stage(6, EXPANSION * 2 * width, 4 * width, strides[2], layer_norm)
        self.layer4 = _stage(3, EXPANSION * 4 * width, 8 * width, strides[3], layer_norm)
        self.fc = nn.Linear(EXPANSION * 8 * width, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(blocks: int, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride, norm)
    rest = (Bottleneck(EXPANSION * channels, channels, 1, norm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
