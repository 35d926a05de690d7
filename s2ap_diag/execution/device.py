"""The device that a user asks for."""

import torch

from s2ap_core import distributed
from s2ap_core.errors import InputError


def check_device(device: str) -> str:
    """Give the device if it is there; with several processes and ``cuda``, this one's.

    Raises:
        InputError: if it is not a device, or not one of this machine's.
    """
    device = distributed.device_of(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device}: not available on this machine; use --device cpu, or as many processes as GPUs"
        ) from error
    return device
