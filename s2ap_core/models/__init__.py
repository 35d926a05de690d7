"""Networks by name.

A network joins with one line, ``NETWORKS["mine"] = factory``, or by its place, ``FILE.py:FACTORY``. The factory is
called with the keywords ``classes``, ``input_channels`` and ``norm_affine``, with ``width`` and ``input_size`` where
the user gave them; one that is named by its place with those of them that it takes (or ``num_classes``). It returns a
module that maps (N, input_channels, H, W) images in [0, 1] to (N, classes) logits. Layers whose names (``head``,
``attn.in_proj``) stand in the module's ``dense_layers`` are never masked. A factory that has ``norm`` in its signature,
too, is called with it where ``network.norm`` is ``group``.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from s2ap_core.config import NetworkNorm
from s2ap_core.config.parts import Registry, blamed, call
from s2ap_core.errors import InputError
from s2ap_core.models.preact_resnet import PreActResNet18
from s2ap_core.models.resnet_cifar import ResNet18
from s2ap_core.models.resnet_imagenet import ResNet50
from s2ap_core.models.vgg import VGG16
from s2ap_core.models.vgg_linear import VGG16Linear
from s2ap_core.models.vit import ViT
from s2ap_core.models.wide_resnet import WideResNet28

__all__ = ["NETWORKS", "build", "check_logits", "chooses_norm", "takes"]

NETWORKS: Registry[Callable[..., nn.Module]] = Registry(
    "network",
    "--network",
    {
        "resnet18": ResNet18,
        "vgg16_bn": VGG16,
        "wrn_28_4": WideResNet28,
        "resnet50": ResNet50,
        "preact_resnet18": PreActResNet18,
        "vgg16_linear": VGG16Linear,
        "vit": ViT,
    },
)


def build(
    name: str,
    *,
    classes: int = 10,
    width: int | None = None,
    input_size: int | None = None,
    input_channels: int = 3,
    norm_affine: bool = True,
    norm: NetworkNorm = "batch",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a key of :data:`NETWORKS`, or the place of a factory, see :mod:`s2ap_core.config.parts`.
        classes: number of logits.
        width: channels of the first stage (embedding width of the ViT); None for the paper's size.
        input_size: height and width of the images in pixels; None for the paper's size.
        input_channels: channels of the images.
        norm_affine: False gives normalisation layers without scale and shift, as RLTH uses them.
        norm: ``batch`` is a network's own normalisation, for most of them BatchNorm; ``group`` is GroupNorm instead.
        options: the network's own.

    Returns:
        A module from (N, input_channels, input_size, input_size) in [0, 1] to (N, classes) logits.

    Raises:
        InputError: if the name is unknown, a size cannot be used, the network has no such ``norm``, or a factory raises
            or returns no module.

    >>> import torch
    >>> build("resnet18", width=8, input_size=8, input_channels=1)(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    factory = NETWORKS.find(name)
    least = {"classes": 2, "width": 1, "input_size": 1, "input_channels": 1}
    given = {"classes": classes, "width": width, "input_size": input_size, "input_channels": input_channels}
    sizes = {option: value for option, value in given.items() if value is not None}
    for option, value in sizes.items():
        if value < least[option]:
            raise InputError(f"{option} = {value}: give a whole number of at least {least[option]}")
    if norm != "batch" and not chooses_norm(name):
        raise InputError(f"network.norm = {norm!r}: {name} has one normalisation of its own; leave it out")
    chosen = {"norm_affine": norm_affine, **({"norm": norm} if norm != "batch" else {})}
    if name in NETWORKS and not options:
        return factory(**sizes, **chosen)
    offered = {**sizes, **chosen, "num_classes": classes}
    model = call(f"network {name}", factory, offered=offered, options=options or {})
    if not isinstance(model, nn.Module):
        raise InputError(f"network {name}: returns a {type(model).__name__}; return an nn.Module")
    return model


def chooses_norm(name: str) -> bool:
    """Return whether a network has several normalisations to choose from; one that is not known may have."""
    return not NETWORKS.knows(name) or "norm" in inspect.signature(NETWORKS.find(name)).parameters


def takes(name: str, option: str) -> bool:
    """Return whether a network's factory has a parameter of this name; one that is not known may have any."""
    if name in NETWORKS or not NETWORKS.knows(name):
        return True
    parameters = inspect.signature(NETWORKS.find(name)).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_logits(name: str, model: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """Check that a network of the user's gives a logit for each class, by two black images.

    Args:
        shape: (C, H, W) of the images.

    Raises:
        InputError: if its forward pass raises or gives another shape.
    """
    file = inspect.getsourcefile(type(model))
    with torch.random.fork_rng([]), torch.no_grad(), blamed(f"network {name} on images of {list(shape)}", file):
        logits = model.eval()(torch.zeros(2, *shape))
    given = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if given != [2, classes]:
        raise InputError(f"network {name}: gives {given} for two images; give a logit for each class, [2, {classes}]")
