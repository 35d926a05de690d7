"""Initial weights that the convolutional networks share, and layers without any."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def unfilled(kind: Callable[..., M], *sizes: Any, like: Tensor, **options: Any) -> M:
    """Build a layer whose parameters hold anything yet, and draw none; ``like`` has their device and dtype.

    As torch's ``skip_init``, which imports sympy for it: a second, and milliseconds for each layer thereafter.
    """
    layer = kind(*sizes, **options, device="meta")
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(like.new_empty(parameter.shape)))
    return layer


def init_convolutions(model: nn.Module) -> None:
    """Draw each convolution from N(0, 2 / fan_out), fan_out = channels out * kernel area (He et al. 2015).

    HYDRA and HARP start VGG, WideResNet and the ImageNet ResNet in this way. Linear layers keep torch's
    default, which follows the fan-in, so that narrow networks train too.
    """
    for module in model.modules():
        # On the meta device torch would import its compiler, a second, to draw nothing.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
