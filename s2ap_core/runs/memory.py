"""The memory that a network takes, asked for before it is taken."""

from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError

TRAINED = 3
"""Copies of a network's weights while it is trained, at least: themselves, their gradients, their momentum."""


def check_memory(described: Mapping[str, Any], model: nn.Module, copies: int = 1, device: str = "cpu") -> None:
    """Refuse a network whose weights alone are more than there is memory for.

    Args:
        described: as the header of a checkpoint describes it.
        model: the network, which may be on the meta device.
        copies: of its weights that are held at once.
        device: whose memory holds them.

    Raises:
        InputError: naming the setting that makes it large, the bytes that it takes and those that there are.
    """
    needed = copies * size(model.state_dict().values())
    on_gpu = device.startswith("cuda")
    there = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    if needed > there:
        name = "width" if described.get("width") is not None else "options" if described.get("options") else "name"
        where = device if on_gpu else "this machine"
        raise InputError(
            f"network.{name} = {described[name]}: {described['name']} takes {megabytes(needed)} of memory or more, "
            f"{where} has {megabytes(there)}; choose a smaller network"
        )


def size(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def megabytes(count: int) -> str:
    """Write a number of bytes in MB, GB or TB."""
    if count >= 1e12:
        return f"{count / 1e12:,.1f} TB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
