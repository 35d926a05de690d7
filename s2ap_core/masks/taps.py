"""Taps of padded convolutions that see nothing but padding: their weights and scores never get a gradient."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.parametrization import Mask, ScoreMask


def blind_taps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Find the taps of each maskable Conv2d that see nothing but padding on images of one shape.

    On a 1x1 map a padded 3x3 convolution sees data with its middle tap alone, and the other eight are blind: in
    every output they are multiplied by zero, whatever the image. Shapes alone decide that.

    Args:
        model: in eval mode; may be on the meta device, where nothing is computed.
        image: [1, C, H, W], on the model's device.

    Returns:
        Boolean [kernel height, kernel width] by layer name; all True for a layer that the network never calls.
    """
    layers = {name: layer for name, layer in maskable_layers(model).items() if isinstance(layer, nn.Conv2d)}
    blind = {name: torch.ones(layer.kernel_size, dtype=torch.bool) for name, layer in layers.items()}

    def look(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        rows, columns = (_seen(layer, axis, inputs[0].shape[2 + axis]) for axis in (0, 1))
        blind[name] &= ~torch.outer(rows, columns)

    hooks = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return blind


def _seen(layer: nn.Conv2d, axis: int, size: int) -> Tensor:
    """Find which taps of one axis of a kernel see data on a map of this size, boolean [kernel size]."""
    if layer.padding_mode != "zeros":
        return torch.ones(layer.kernel_size[axis], dtype=torch.bool)
    padding = layer.padding if isinstance(layer.padding, str) else layer.padding[axis]
    taps = torch.zeros(1, 1, layer.kernel_size[axis], requires_grad=True)
    with torch.enable_grad():
        # The gradient of a tap is the sum of what it sees, here the number of pixels.
        outputs = F.conv1d(
            torch.ones(1, 1, size), taps, stride=layer.stride[axis], padding=padding, dilation=layer.dilation[axis]
        )
        (pixels,) = torch.autograd.grad(outputs.sum(), taps)
    return pixels.flatten() > 0


def count_blind(mask: Mask, taps: Tensor) -> int:
    """Count the entries of a Conv2d's mask, or its scores, that are for blind taps alone.

    Args:
        taps: boolean [kernel height, kernel width], of :func:`blind_taps`.
    """
    entries = mask.scores if isinstance(mask, ScoreMask) else mask.mask_bits
    if entries.shape[2:] == taps.shape:
        return int(taps.sum()) * entries.shape[0] * entries.shape[1]
    return entries.numel() if bool(taps.all()) else 0  # a score of a channel is for all taps
