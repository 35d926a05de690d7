"""WideResNet-28-4 (Zagoruyko & Komodakis 2016), with the module names of HYDRA and HARP."""

import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.models.initialization import init_convolutions
from s2ap_core.models.normalization import MakesNorm, normalization
from s2ap_core.models.small_images import strides_on

BLOCKS_PER_STAGE = 4
"""(depth - 4) / 6 for a depth of 28."""


class PreActivationBlock(nn.Module):
    """Normalise, activate, convolve, twice; where the channels change, the shortcut projects the activation.

    Maps (N, channels_in, H, W) to (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> None:
        super().__init__()
        self.bn1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if channels_in != channels else None

    def forward(self, x: Tensor) -> Tensor:
        activation = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activation))))
        return out + (x if self.convShortcut is None else self.convShortcut(activation))


class Stage(nn.Module):
    """Blocks of one resolution, under the name ``layer`` as in the published code."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: MakesNorm) -> None:
        super().__init__()
        first = PreActivationBlock(channels_in, channels, stride, norm)
        rest = (PreActivationBlock(channels, channels, 1, norm) for _ in range(BLOCKS_PER_STAGE - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet28(nn.Module):
    """WideResNet of depth 28; inputs in [0, 1] are not normalised.

    HYDRA's network also carries a ``sub_block1`` that its forward pass never uses; this one does not.

    Args:
        classes: number of logits.
        width: channels of the first stage, 64 for widening factor 4; the stem has a quarter of them, the
            other stages 2 and 4 times as many.
        input_size: any; a stride that would leave less than 2x2 is dropped, the last pool averages what there is.
        input_channels: channels of the images.
        norm_affine: whether the normalisation layers scale and shift.
        norm: by the batch, or by groups of channels of each image.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        input_size: int = 32,
        input_channels: int = 3,
        norm_affine: bool = True,
        norm: NetworkNorm = "batch",
    ) -> None:
        super().__init__()
        layer_norm = normalization(norm, norm_affine)
        strides = strides_on(input_size, (1, 2, 2))
        stem = max(1, width // 4)
        self.conv1 = nn.Conv2d(input_channels, stem, 3, padding=1, bias=False)
        self.block1 = Stage(stem, width, strides[0], layer_norm)
        self.block2 = Stage(width, 2 * width, strides[1], layer_norm)
        self.block3 = Stage(2 * width, 4 * width, strides[2], layer_norm)
        self.bn1 = layer_norm(4 * width)
        self.fc = nn.Linear(4 * width, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1).flatten(1))
