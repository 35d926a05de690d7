"""Files of torch's tensors: safetensors with a JSON header and a checksum; nothing is a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialize
from torch import Tensor

from s2ap_core.files.atomic import write_file
from s2ap_core.files.header import HEADER, Content, checksum, read
from s2ap_core.files.writer import writes_files


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors as safetensors with ``header`` (JSON types) and the checksum of both."""
    if not writes_files():
        return
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**header}
    described["sha256"] = checksum({name: _content(tensor) for name, tensor in held.items()}, described)
    write_file(path, serialize(held, metadata={HEADER: json.dumps(described)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load tensors and header of a file that :func:`save_tensors` wrote.

    Raises:
        InputError: if the file is missing, truncated, altered, or not one of ours.
    """
    return read(path, "pt", _content)


def _content(tensor: Tensor) -> Content:
    return Content(str(tensor.dtype), tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().data)


def save_masks(path: Path, masks: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write boolean masks with eight entries to a byte; their shapes stand in the header."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_tensors(path, packed, {**header, "shapes": shapes})
