"""A convolution whose weight stays the same for many passes."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAST = torch.channels_last

LARGE = 100_000
"""Entries from which a weight is laid out once: for a smaller one that takes less than calling Python from a pass."""


class ConstantConvolution(nn.Module):
    """Convolve with numbers that ask for no gradient, and cut the result at 0 where ``relu`` is set.

    On a CPU a convolution works in a layout of its own, into which torch brings the weight at each call: 512 x 512
    kernels take as long to bring as eight images of 4 x 4 take to convolve with them. Here they are brought once, for
    the pass forward and for the one back, which with stride 1 is a convolution too, by the weight mirrored and
    transposed. The results differ from torch's by rounding.

    Args:
        like: the convolution whose geometry it has; its numbers are set by :meth:`set`.

    Attributes:
        relu: whether the result is ``max(0, .)`` of the convolution's.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        padding = _padding(like)
        assert padding is not None
        self.padding, self.stride, self.dilation, self.groups = padding, like.stride, like.dilation, like.groups
        self.relu = False
        self.register_buffer("weight", torch.empty_like(like.weight, requires_grad=False, memory_format=LAST))
        self.register_buffer("bias", like.weight.new_empty(like.out_channels))
        self.laid_out: dict[str, Tensor] = {}

    @staticmethod
    def can_do(like: nn.Conv2d) -> bool:
        """Return whether there can be one of this geometry: with zeros around the image, as many on each side."""
        return like.padding_mode == "zeros" and _padding(like) is not None

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take these numbers for all passes to come; without a bias, zeros."""
        self.weight.copy_(weight)
        self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)
        self.laid_out = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is laid out, which can be neither copied nor pickled."""
        return {**self.__dict__, "laid_out": {}}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images [B, C, H, W]."""
        on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if on_cpu and self.weight.numel() >= LARGE:
            result: Tensor = _LaidOutOnce.apply(x, self)  # type: ignore[no-untyped-call]
            return result
        result = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return result.relu_() if self.relu else result

    def there(self, x: Tensor) -> Tensor:
        """Convolve ``x``, on a CPU and in float32."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        result = _convolve(x, self._layout("there", x, geometry), self.bias, geometry)
        return result.relu_() if self.relu else result  # oneDNN's own would make a number of NaN

    def back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Compute the gradient in images of this shape from that in the convolution's result."""
        sizes = zip(self.weight.shape[2:], self.padding, self.dilation, strict=True)
        around = [d * (k - 1) - p for k, p, d in sizes]
        if self.stride == (1, 1) and self.groups == 1 and min(around) >= 0:
            geometry = (around, self.stride, self.dilation, self.groups)
            return _convolve(gradient, self._layout("back", gradient, geometry), None, geometry)
        images = torch.empty(shape, dtype=gradient.dtype, memory_format=LAST)  # whose numbers do not matter
        others = (self.stride, self.padding, self.dilation, False, [0, 0], self.groups, [True, False, False])
        result: Tensor = torch.ops.aten.convolution_backward(gradient, images, self.weight, None, *others)[0]
        return result

    def _layout(self, way: Literal["there", "back"], x: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        if way not in self.laid_out:
            weight = self.weight if way == "there" else self.weight.transpose(0, 1).flip(2, 3)
            weight = weight.contiguous(memory_format=LAST)
            self.laid_out[way] = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)
        return self.laid_out[way]


def _padding(conv: nn.Conv2d) -> tuple[int, ...] | None:
    """Return how many zeros lie on each side of the image; None where one side has more than the other."""
    if not isinstance(conv.padding, str):
        return conv.padding
    if conv.padding == "valid":
        return (0, 0)
    both = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    return None if any(zeros % 2 for zeros in both) else tuple(zeros // 2 for zeros in both)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
    x = x.contiguous(memory_format=LAST)
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")
    return result


class _LaidOutOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: ConstantConvolution) -> Tensor:
        result = convolution.there(x)
        ctx.convolution, ctx.shape = convolution, x.shape
        ctx.save_for_backward(*[result] * convolution.relu)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.convolution.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, *ctx.saved_tensors, 0)
        return ctx.convolution.back(gradient, ctx.shape), None
