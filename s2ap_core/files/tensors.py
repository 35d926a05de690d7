"""Tensor files: safetensors with a JSON header and a checksum, written whole or not at all; nothing is a pickle."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from s2ap_core import distributed
from s2ap_core.errors import InputError
from s2ap_core.files import lock

HEADER = "s2ap"


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all; of several processes of a run, the first does.

    Raises:
        InputError: naming the path, if the folder cannot be written to or the disk is full, or the run that it
            belongs to has vanished.
    """
    if distributed.rank():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        lock.make_folder_of(path)
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors as safetensors with ``header`` (JSON types) and the checksum of both."""
    if distributed.rank():
        return
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = {**header}
    described["sha256"] = _checksum(held, described)
    write_file(path, serialize(held, metadata={HEADER: json.dumps(described)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that :func:`save_tensors` wrote.

    Raises:
        InputError: if the file is missing, truncated, altered, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get(HEADER, "null"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: truncated, or not a safetensors file; copy or make it again") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: a safetensors file without our header; give --network and --keep for foreign files")
    if header.get("sha256") != _checksum(tensors, header):
        raise InputError(f"{path}: its checksum does not fit, the file was altered; copy or make it again")
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    described = {name: entry for name, entry in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_masks(path: Path, masks: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write boolean masks with eight entries to a byte; their shapes stand in the header."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_tensors(path, packed, {**header, "shapes": shapes})


def load_masks(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Boolean masks, in the network's order, and the header of a file that :func:`save_masks` wrote.

    Raises:
        InputError: as :func:`load_tensors`, or if the file holds no masks.
    """
    packed, header = load_tensors(path)
    shapes = header.get("shapes")
    if not isinstance(shapes, dict) or shapes.keys() != packed.keys():
        raise InputError(f"{path}: not a mask file; masks lie in RUN/masks")
    found = {}
    for name, shape in shapes.items():
        size = _entries(shape)
        if packed[name].dtype != torch.uint8 or packed[name].shape != (-(-size // 8),):
            raise InputError(f"{path}: {name} is no packed mask of shape {shape}; copy or make it again")
        bits = np.unpackbits(packed[name].numpy(), count=size)
        found[name] = torch.from_numpy(bits.reshape(shape)).bool()
    return found, header


def _entries(shape: Any) -> int:
    """Number of entries of a shape that a file says; 0, which fits no bits, of what is none."""
    fits = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    return math.prod(shape) if fits else 0
