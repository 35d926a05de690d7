"""Networks by name.

A network joins with one line, ``NETWORKS["mine"] = factory``. The factory is called with the keywords
``classes``, ``input_channels`` and ``norm_affine``, and with ``width`` and ``input_size`` where the user
gave them; it returns a module that maps (N, input_channels, H, W) images in [0, 1] to (N, classes)
logits. Layers whose names (``head``, ``attn.in_proj``) stand in the module's ``dense_layers`` are never masked. A
factory that has ``norm`` in its signature, too, is called with it where ``network.norm`` is ``group``.
"""

import inspect
from collections.abc import Callable

from torch import nn

from s2ap_core.config import NetworkNorm
from s2ap_core.errors import InputError
from s2ap_core.models.resnet_cifar import ResNet18
from s2ap_core.models.resnet_imagenet import ResNet50
from s2ap_core.models.vgg import VGG16
from s2ap_core.models.vit import ViT
from s2ap_core.models.wide_resnet import WideResNet28

__all__ = ["NETWORKS", "build", "chooses_norm"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "vgg16_bn": VGG16,
    "wrn_28_4": WideResNet28,
    "resnet50": ResNet50,
    "vit": ViT,
}


def build(
    name: str,
    *,
    classes: int = 10,
    width: int | None = None,
    input_size: int | None = None,
    input_channels: int = 3,
    norm_affine: bool = True,
    norm: NetworkNorm = "batch",
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a key of :data:`NETWORKS`.
        classes: number of logits.
        width: channels of the first stage (embedding width of the ViT); None for the paper's size.
        input_size: height and width of the images in pixels; None for the paper's size.
        input_channels: channels of the images.
        norm_affine: False gives normalisation layers without scale and shift, as RLTH uses them.
        norm: ``batch`` is a network's own normalisation, for most of them BatchNorm; ``group`` is GroupNorm instead.

    Returns:
        A module from (N, input_channels, input_size, input_size) in [0, 1] to (N, classes) logits.

    Raises:
        InputError: if the name is unknown, a size cannot be used, or the network has no such ``norm``.

    >>> import torch
    >>> build("resnet18", width=8, input_size=8, input_channels=1)(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if name not in NETWORKS:
        raise InputError(f"network = {name!r} is unknown: choose one of {', '.join(NETWORKS)}")
    least = {"classes": 2, "width": 1, "input_size": 1, "input_channels": 1}
    given = {"classes": classes, "width": width, "input_size": input_size, "input_channels": input_channels}
    sizes = {option: value for option, value in given.items() if value is not None}
    for option, value in sizes.items():
        if value < least[option]:
            raise InputError(f"{option} = {value}: give a whole number of at least {least[option]}")
    if norm == "batch":
        return NETWORKS[name](norm_affine=norm_affine, **sizes)
    if not chooses_norm(name):
        raise InputError(f"network.norm = {norm!r}: {name} has one normalisation of its own; leave it out")
    return NETWORKS[name](norm_affine=norm_affine, norm=norm, **sizes)


def chooses_norm(name: str) -> bool:
    """Return whether a network of :data:`NETWORKS` has several normalisations to choose from."""
    return "norm" in inspect.signature(NETWORKS[name]).parameters
