"""Vision transformer for small images (Dosovitskiy et al. 2021), in the size of the paper's Table 3."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.errors import InputError

DEPTH = 8
HEAD_DIM = 64
MLP_RATIO = 4
PATCH_SIZES = (4, 2, 1)
MIN_TOKENS = 16


class Attention(nn.Module):
    """Multi-head self-attention on (N, tokens, width), with queries, keys and values in one Linear.

    Own code instead of ``nn.MultiheadAttention``, so that tensors have the names of published vision transformers'.
    Double backward needs ``sdpa_kernel(SDPBackend.MATH)``.
    """

    packed = "qkv"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer layer on (N, tokens, width): attention, then an MLP of 4 * width GELU units."""

    def __init__(self, width: int, heads: int, norm_affine: bool) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, width, elementwise_affine=norm_affine)
        self.norm1 = norm()
        self.attn = Attention(width, heads)
        self.norm2 = norm()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Vision transformer of depth 8 with learned positions; inputs in [0, 1] are not normalised.

    The paper masks "all linear layers except for the final classification head" (Sect. 4.2). The patch
    embedding is here a Linear on flattened patches, thus masked as well: a choice the paper leaves open,
    0.1 % of the weights. The logits come from the mean over tokens rather than from a class token, which
    gives the 64 tokens that the paper states for 32x32 images.

    Linear layers start from Xavier's uniform distribution with zero biases, positions from N(0, 0.02^2).

    Args:
        classes: number of logits.
        width: embedding width. There are width / 64 heads, or the next smaller number that divides it.
        input_size: patches are 4x4 pixels, or 2x2, or 1x1: the largest that divides the image into at
            least 16.
        input_channels: channels of the images.
        norm_affine: whether LayerNorm scales and shifts.
        dense_head: whether the classification head stays dense, as in the paper.

    Raises:
        InputError: if the image is smaller than 4x4.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 384,
        input_size: int = 32,
        input_channels: int = 3,
        norm_affine: bool = True,
        dense_head: bool = True,
    ) -> None:
        super().__init__()
        self.dense_layers = ("head",) if dense_head else ()
        fitting = [p for p in PATCH_SIZES if input_size % p == 0 and (input_size // p) ** 2 >= MIN_TOKENS]
        if not fitting:
            raise InputError(f"input_size = {input_size}: the ViT needs images of at least 4x4 pixels")
        self.patch = fitting[0]
        heads = next(h for h in range(max(1, width // HEAD_DIM), 0, -1) if width % h == 0)
        self.embed = nn.Linear(input_channels * self.patch**2, width)
        self.positions = nn.Parameter(torch.zeros(1, (input_size // self.patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, norm_affine) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(width, elementwise_affine=norm_affine)
        self.head = nn.Linear(width, classes)
        if not self.positions.is_meta:  # as in init_convolutions
            nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)  # (N, tokens, C * patch^2)
        tokens = self.blocks(self.embed(patches) + self.positions)
        return self.head(self.norm(tokens).mean(1))
