"""What a published network does besides its state dict: whether it normalises its images, and by what."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from s2ap_core.foreign.formats import StateDict
from s2ap_core.models import NETWORKS
from s2ap_core.models.image_statistics import CIFAR10

MAD = {
    "svhn": ((0.43090966, 0.4302428, 0.44634357), (0.19759192, 0.20029082, 0.19811132)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
"""Mean and deviation that MAD's networks normalise by; their files do not say them."""

BIRDS = re.compile(r"flying[-_ ]?bird|robust[-_ ]?bird", re.IGNORECASE)
"""In the path of a VGG of theirs, which normalises by CIFAR-10's numbers; others', of the same names, do not."""


def own_options(name: str, source: StateDict, tensors: Mapping[str, Tensor], dataset: str | None) -> dict[str, Any]:
    """Collect the options of a network of ours that the file, its format or its path imply."""
    taken = inspect.signature(NETWORKS.find(name)).parameters
    options: dict[str, Any] = {}
    convolutions = [n for n in tensors if n.startswith("features.") and n.endswith(".bias")]
    if "bias" in taken and any(f"{n[:-5]}.running_mean" not in tensors for n in convolutions):
        options["bias"] = True
    if "pool" in taken and "feature.0.weight" in source.tensors:  # as MAD's and Li20's code calls them
        options["pool"] = "average"
    if "hidden" in taken and "hidden.0.weight" in tensors:
        options["hidden"] = True
    if "mean" not in taken:
        return options
    said = [tensors.get(f"normalize.{part}") for part in ("mean", "std")]
    if all(tensor is not None for tensor in said):
        mean, std = (tensor.flatten().tolist() for tensor in said if tensor is not None)
    elif source.format == "mad":
        mean, std = map(list, MAD["svhn" if dataset == "svhn" else "cifar10"])
    elif name == "vgg16_linear" and BIRDS.search(str(source.path)):
        mean, std = map(list, CIFAR10)
    else:
        return options
    return options | {"mean": mean, "std": std}
