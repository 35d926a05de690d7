"""What a masked network costs, as shares of the dense one: weights, and multiply-accumulates of those that are kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.export import image_shape
from s2ap_core.masks.costs import counted_products
from s2ap_core.masks.layers import masked_layers
from s2ap_core.masks.masking import masks
from s2ap_core.runs.checkpoints import Checkpoint, build_network


@dataclass(frozen=True)
class Cost:
    """Shares of the dense network, in (0, 1].

    Attributes:
        density: kept entries of all masked weights.
        flops: multiply-accumulates for one image, where a weight that is dropped costs none; what is not masked counts
            in full.
    """

    density: float
    flops: float


def cost(checkpoint: Checkpoint) -> Cost:
    """Count what the masks of a checkpoint of ours keep.

    Raises:
        InputError: if its header does not say the size of its images.
    """
    described = checkpoint.header["network"]
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
