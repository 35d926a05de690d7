"""What a masked network costs, as shares of the dense one: weights, and multiply-accumulates of those that are kept."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.errors import InputError
from s2ap_core.export import image_shape
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.costs import counted_products
from s2ap_core.masks.layers import masked_layers
from s2ap_core.masks.masking import masks
from s2ap_core.masks.state import selects
from s2ap_core.models import NETWORKS
from s2ap_core.models.initialization import unfilled
from s2ap_core.runs.checkpoints import Checkpoint, build_network, check_header, fill, load_checkpoint

CONVOLUTIONS: Mapping[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
"""By the dimensions of their weight."""


@dataclass(frozen=True)
class Cost:
    """Shares of the dense network, in (0, 1].

    Attributes:
        density: kept entries of all masked weights.
        flops: multiply-accumulates for one image, where a weight that is dropped costs none; what is not masked counts
            in full. None of a network of the user's own code, which is not run to count them.
    """

    density: float
    flops: float | None


def masked_network(path: Path, *, whole: bool = False) -> Checkpoint:
    """Load the masked layers of a checkpoint of ours, without the network that they are of.

    Args:
        whole: load the network itself, unless it is one whose code is not named.

    Raises:
        InputError: as :func:`s2ap_core.runs.checkpoints.load_checkpoint`.
    """
    tensors, header = load_tensors(path)
    described = header.get("network")
    known = isinstance(described, Mapping) and NETWORKS.knows(str(described.get("name")))
    if not isinstance(described, Mapping) or (whole and known):
        return load_checkpoint(path)
    try:
        check_header(header)
        model = _layers(tensors)
        weights = model.state_dict()
        own = {name for name in tensors if name in weights or selects(name)}
        fill(model, {name: tensors[name] for name in own}, header["keep"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Checkpoint(path, model, header)


def _layers(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make a layer for each weight with a mask, of its shape and under its name: no network, nothing to call."""
    masked = [name for name in tensors if selects(name) and name.endswith(("scores", "mask"))]
    weights = {name: tensors[name] for name in (re.sub("(scores|mask)$", "weight", one) for one in masked)}
    layers: dict[str, nn.Module] = {}
    for name, weight in weights.items():  # which are filled, not drawn
        path, _, parameter = name.rpartition(".")
        if parameter == "in_proj_weight":
            layers[path] = unfilled(nn.MultiheadAttention, weight.shape[1], 1, like=weight, bias=False)
        elif parameter == "weight" and weight.ndim == 2:
            layers[path] = unfilled(nn.Linear, weight.shape[1], weight.shape[0], like=weight, bias=False)
        elif parameter == "weight" and weight.ndim in CONVOLUTIONS:
            outputs, inputs, *kernel = weight.shape
            layers[path] = unfilled(CONVOLUTIONS[weight.ndim], inputs, outputs, tuple(kernel), like=weight, bias=False)
        else:
            raise InputError(f"{name} is of a layer that is not known without its network")
    root = nn.Module()
    for path in sorted(layers):  # an attention before what lies in it
        *folders, last = path.split(".")
        module = root
        for folder in folders:
            if folder not in dict(module.named_children()):
                module.add_module(folder, nn.Module())
            module = module.get_submodule(folder)
        module.add_module(last, layers[path])
    return root


def cost(checkpoint: Checkpoint) -> Cost:
    """Count what the masks of a checkpoint of ours keep.

    Raises:
        InputError: if its header does not say the size of its images.
    """
    described = checkpoint.header["network"]
    if not NETWORKS.knows(described["name"]):
        bits = masks(checkpoint.model)
        return Cost(sum(int(m.sum()) for m in bits.values()) / sum(m.numel() for m in bits.values()), None)
    total, by_layer = _flops(json.dumps(described, sort_keys=True))
    bits = masks(checkpoint.model)
    kept = {name: bits[layer.tensor("weight")] for name, layer in masked_layers(checkpoint.model).items()}
    entries = sum(mask.numel() for mask in kept.values())
    saved = sum(by_layer.get(name, 0) * (1 - float(mask.double().mean())) for name, mask in kept.items())
    return Cost(sum(int(mask.sum()) for mask in kept.values()) / entries, 1 - saved / total)


@lru_cache(maxsize=32)
def _flops(described: str) -> tuple[int, Mapping[str, int]]:
    """Count the FLOPs of a network for one image: of all of it, and of each layer's weight by the layer's name."""
    network: dict[str, Any] = json.loads(described)
    model = build_network(network).eval()
    with torch.no_grad(), counted_products(model) as products, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape(network)))
    return counter.get_total_flops(), {name: 2 * count for name, count in products.items()}
