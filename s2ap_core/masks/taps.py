"""Taps of padded convolutions that see nothing but padding: their weights and scores never get a gradient."""

from collections.abc import Mapping
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.masks.kinds import CONVOLUTIONS, TRANSPOSED, input_of
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.parametrization import Mask, ScoreMask


def blind_taps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Find the taps of each maskable convolution that see nothing but padding on images of one shape.

    On a 1x1 map a padded 3x3 convolution sees data with its middle tap alone, and the other eight are blind: in
    every output they are multiplied by zero, whatever the image. Shapes alone decide that. Of a transposed convolution,
    they are those whose every output is cut off.

    Args:
        model: in eval mode; may be on the meta device, where nothing is computed.
        image: [1, C, H, W], on the model's device.

    Returns:
        Boolean, of the kernel's shape, by layer name; all True for a layer that the network never calls.
    """
    layers = {n: layer.module for n, layer in maskable_layers(model).items() if isinstance(layer.module, CONVOLUTIONS)}
    blind = {name: torch.ones(layer.kernel_size, dtype=torch.bool) for name, layer in layers.items()}

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> None:
        axes, given = len(layers[name].kernel_size), input_of(inputs, named)
        seen = [_seen(layer, axis, given.shape[axis - axes], output.shape[axis - axes]) for axis in range(axes)]
        blind[name] &= ~reduce(lambda before, axis: before[..., None] & axis, seen)

    hooks = [layer.register_forward_hook(partial(look, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return blind


def _seen(layer: nn.Module, axis: int, size: int, made: int) -> Tensor:
    """Find which taps of one axis of a kernel see data where it makes ``made`` pixels of ``size``, [kernel size]."""
    assert isinstance(layer, CONVOLUTIONS)
    if layer.padding_mode != "zeros":
        return torch.ones(layer.kernel_size[axis], dtype=torch.bool)
    padding = layer.padding if isinstance(layer.padding, str) else layer.padding[axis]
    taps = torch.zeros(1, 1, layer.kernel_size[axis], requires_grad=True)
    with torch.enable_grad():
        # The gradient of a tap is the sum of what it sees, here their number.
        pixels, step, gap = torch.ones(1, 1, size), layer.stride[axis], layer.dilation[axis]
        if isinstance(layer, TRANSPOSED):
            assert isinstance(padding, int)  # torch has no other
            # A call may ask for a size of its own, by more or fewer pixels at the end than the layer adds.
            added = made - ((size - 1) * step - 2 * padding + gap * (taps.numel() - 1) + 1)
            outputs = F.conv_transpose1d(pixels, taps, stride=step, padding=padding, output_padding=added, dilation=gap)
        else:
            outputs = F.conv1d(pixels, taps, stride=step, padding=padding, dilation=gap)
        (products,) = torch.autograd.grad(outputs.sum(), taps)
    return products.flatten() > 0


def count_blind(mask: Mask, taps: Tensor) -> int:
    """Count the entries of a convolution's mask, or its scores, that are for blind taps alone.

    Args:
        taps: boolean, of the kernel's shape, of :func:`blind_taps`.
    """
    entries = mask.scores if isinstance(mask, ScoreMask) else mask.mask_bits
    if entries.shape[2:] == taps.shape:
        return int(taps.sum()) * entries.shape[0] * entries.shape[1]
    return entries.numel() if bool(taps.all()) else 0  # a score of a channel is for all taps
