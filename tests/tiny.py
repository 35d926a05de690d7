"""Small networks of the tests, apart so that one can be pickled whichever conftest was loaded last."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import NetworkNorm
from s2ap_core.masks.masking import attach, scores
from s2ap_core.models.normalization import normalization


class Tiny(nn.Module):
    """Two convolutions with BatchNorm, or GroupNorm, and a linear layer with a bias."""

    def __init__(
        self,
        classes: int = 10,
        width: int = 4,
        input_size: int = 8,
        input_channels: int = 1,
        norm_affine: bool = True,
        norm: NetworkNorm = "batch",
    ) -> None:
        super().__init__()
        layer_norm = normalization(norm, norm_affine)
        self.conv1 = nn.Conv2d(input_channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = layer_norm(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = layer_norm(2 * width)
        self.linear = nn.Linear(2 * width * (input_size // 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(F.relu(self.bn2(self.conv2(x))).flatten(1))


def linear_with_scores(values: np.ndarray, keep: float) -> nn.Module:
    """A layer of one output in float64, masked by these scores."""
    model = attach(nn.Linear(len(values), 1, bias=False).double(), keep=keep)
    with torch.no_grad():
        scores(model)["scores"].copy_(torch.from_numpy(values)[None])
    return model
