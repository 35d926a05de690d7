"""What a masked network costs, as shares of the dense one: weights, and multiply-accumulates of those that are kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.export import image_shape
from s2ap_core.masks.masking import masks
from s2ap_core.modes import without_fused_attention
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
    kept = {name.removesuffix(".weight"): mask for name, mask in masks(checkpoint.model).items()}
    entries = sum(mask.numel() for mask in kept.values())
    saved = sum(by_layer.get(name, 0) * (1 - float(mask.double().mean())) for name, mask in kept.items())
    return Cost(sum(int(mask.sum()) for mask in kept.values()) / entries, 1 - saved / total)


@lru_cache(maxsize=32)
def _flops(described: str) -> tuple[int, Mapping[str, int]]:
    """Count the FLOPs of a network for one image: of all of it, and by the name of a module."""
    network: dict[str, Any] = json.loads(described)
    model = build_network(network).eval()
    with torch.no_grad(), without_fused_attention(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_shape(network)))
    counts = counter.get_flop_counts()
    by_layer = {name.partition(".")[2]: sum(ops.values()) for name, ops in counts.items() if "." in name}
    return counter.get_total_flops(), by_layer
