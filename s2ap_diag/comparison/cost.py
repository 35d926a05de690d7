"""What a masked network costs, as shares of the dense one: weights, and multiply-accumulates of those that are kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.export import image_shape
from s2ap_core.masks.costs import counted_products
from s2ap_core.masks.kinds import layer_name
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import build_network


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


def cost(network: Mapping[str, Any], bits: Mapping[str, Tensor]) -> Cost:
    """Count what masks keep.

    Args:
        network: as a checkpoint's header describes it.
        bits: boolean, by weight name.

    Raises:
        InputError: if the description does not say the size of the images.
    """
    density = sum(int(mask.sum()) for mask in bits.values()) / sum(mask.numel() for mask in bits.values())
    if not NETWORKS.knows(str(network.get("name"))):
        return Cost(density, None)
    total, by_layer = _flops(json.dumps(network, sort_keys=True))
    dropped = {layer_name(weight): 1 - int(mask.sum()) / mask.numel() for weight, mask in bits.items()}
    return Cost(density, 1 - sum(by_layer.get(name, 0) * share for name, share in dropped.items()) / total)


@lru_cache(maxsize=32)
def _flops(described: str) -> tuple[int, Mapping[str, int]]:
    """Count the FLOPs of a network for one image: of all of it, and of each layer's weight by the layer's name."""
    network: dict[str, Any] = json.loads(described)
    model = build_network(network).eval()
    with torch.no_grad(), counted_products(model) as products, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape(network)))
    return counter.get_total_flops(), {name: 2 * count for name, count in products.items()}
