"""Where checkpoints and masks come from: files, folders and runs, ours and other tools'."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.files.arrays import load_arrays
from s2ap_core.files.header import HEADER, is_safetensors
from s2ap_core.files.tensors import load_tensors
from s2ap_core.foreign.formats import is_binary, read_state, without_prefix
from s2ap_core.foreign.network import foreign_masks, masks_without_weights, read_foreign, recognise
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import Checkpoint, check_header, load_checkpoint
from s2ap_diag.stability import PackedMask, PackedMasks

Kind = Literal["checkpoint", "masks"]


FOLDERS: dict[Kind, str] = {"checkpoint": "ckpt", "masks": "masks"}
"""Where a run keeps them."""


_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".tar")


_ARRAYS = (".npz", ".npy")


SUFFIXES: dict[Kind, tuple[str, ...]] = {"checkpoint": _CHECKPOINTS, "masks": (*_CHECKPOINTS, *_ARRAYS)}


def expand(paths: Sequence[Path], kind: Kind) -> list[Path]:
    """The files that paths stand for, in the order given.

    A file stands for itself, a run for its ``ckpt`` or ``masks`` folder, a folder for its files of a
    known suffix, in the order of the numbers in their names; states of a stage (``state-*``), hidden
    and temporary files are left out. Folders within folders are not entered.

    Raises:
        InputError: if a path is missing or cannot be read, or a folder holds no such file.
    """
    return [file for path in paths for file in _files(path, kind)]


def _files(path: Path, kind: Kind) -> list[Path]:
    if os.path.isfile(path):  # pathlib's raises for names that no file can have
        return [path]
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such file or folder")
    folder = path / FOLDERS[kind] if any((path / name).is_dir() for name in FOLDERS.values()) else path
    try:
        files = [
            file
            for file in folder.iterdir()
            if file.suffix in SUFFIXES[kind] and not file.name.startswith((".", "state-")) and file.is_file()
        ]
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such folder; the run has not saved any {kind} yet") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); give the files") from error
    if not files:
        raise InputError(f"{folder}: holds no {kind} file ({', '.join(SUFFIXES[kind])})")
    return sorted(files, key=lambda file: (_natural(file.name), file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts epoch-2 before epoch-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def epoch_of(path: Path) -> int | None:
    """The epoch that a file's name says: the number behind ``epoch``, else a number that stands alone or last.

    >>> [epoch_of(Path(p)) for p in ("prune-epoch-012.safetensors", "mask_7.pth.tar", "3.npz", "resnet18.pt")]
    [12, 7, 3, None]
    """
    stem = path.name.partition(".")[0].lower()
    for network in NETWORKS:  # wrn_28_4 is a name, not epoch 4
        stem = stem.replace(network, "")
    named = re.search(r"epoch[-_ ]?(\d+)", stem) or re.search(r"(?:^|[-_ ])(\d+)$", stem)
    return int(named[1]) if named else None


def open_checkpoint(
    path: Path,
    *,
    network: str | None = None,
    dataset: str | None = None,
    keep: float | None = None,
    width: int | None = None,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """A model, ours or another tool's, with its masks, in eval mode.

    The options say what another tool's file does not; ours say it themselves. The header has ``epoch``
    from the file or its name, else None.

    Raises:
        InputError: as ``s2ap_core.runs.checkpoints.load_checkpoint`` and ``s2ap_core.foreign.network.read_foreign``.
    """
    if _is_ours(path):
        return load_checkpoint(path, device)
    found = read_foreign(path, network=network, dataset=dataset, keep=keep, width=width, device=device)
    return Checkpoint(path, found.model, _with_epoch(found.header, path))


def open_masks(
    path: Path, *, keep: float | None = None, network: str | None = None, width: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Boolean masks by weight name (``conv1.weight``), and what the file says of them.

    Reads mask files and checkpoints of ours, other tools' checkpoints, and plain masks: .npz, .npy (one
    array, named ``weight``), dense safetensors, and pickled dicts of tensors, all boolean or 0 and 1.

    Returns:
        The masks, and a header with at least ``network``, ``keep`` and ``epoch``, None where unknown.

    Raises:
        InputError: if the file is missing or damaged, holds no masks, or other values than 0 and 1; or as
            ``s2ap_core.foreign.network.read_foreign``.
    """
    if path.suffix in _ARRAYS:
        return _plain_masks(path, _read_arrays(path))
    if _is_ours(path):
        return _our_masks(path)
    found = read_state(path)
    if found.format == "dense" and network is None:
        if all(map(is_binary, found.tensors.values())):
            return _plain_masks(path, {n: mask.numpy() for n, mask in found.tensors.items()}, found.epoch)
        if recognise(found.tensors) is None:
            name = next(name for name, tensor in found.tensors.items() if not is_binary(tensor))
            raise InputError(
                f"{path}: {name} holds values other than 0 and 1; give masks, or --network for a checkpoint"
            )
    masks, header = foreign_masks(found, network=network, keep=keep, width=width)
    return masks, _with_epoch(header, path)


def _is_ours(path: Path) -> bool:
    if not is_safetensors(path):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated, or not a safetensors file; copy or make it again") from error


def _our_masks(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path)
    if "shapes" in header:
        unpacked = _unpackable(path, tensors, header).unpack()
        return {name: torch.from_numpy(bits) for name, bits in unpacked.items()}, header
    if not any(name.endswith((".scores", ".mask")) for name in tensors):
        raise InputError(f"{path}: holds no masks (stage {header.get('stage')}); masks lie in RUN/masks")
    try:
        check_header(header)
        return masks_without_weights(header["network"], tensors, header["keep"]), header
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _unpackable(path: Path, packed: Mapping[str, Tensor], header: Mapping[str, Any]) -> PackedMasks:
    """The masks of a mask file of ours, still packed; nothing is trusted that its header says of them."""
    shapes = header["shapes"]
    if not isinstance(shapes, dict) or not shapes or shapes.keys() != packed.keys():
        raise InputError(f"{path}: not a mask file, its shapes are of other layers; make it again")
    masks = {}
    for name, shape in shapes.items():
        whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
        if not whole or packed[name].dtype != torch.uint8:
            raise InputError(f"{path}: {name} is no packed mask of shape {shape}; make it again")
        try:
            masks[name] = PackedMask.from_bytes(packed[name].numpy(), shape)
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}; make it again") from error
    return PackedMasks(masks)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_arrays(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(
            f"{path}: truncated, or not plain arrays of 0 and 1; copy it again or save it with numpy.savez"
        ) from error
    try:
        return without_prefix(arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _plain_masks(
    path: Path, arrays: Mapping[str, np.ndarray], epoch: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of 0 and 1 under whatever names as masks by weight name."""
    masks: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise InputError(f"{path}: {name} holds values other than 0 and 1; give masks")
        masks[_weight_name(name)] = torch.from_numpy(array.astype(bool))
    if not masks or len(masks) < len(arrays) or not all(mask.numel() for mask in masks.values()):
        raise InputError(f"{path}: holds no masks, an empty one, or two for one layer; give one array for each layer")
    entries = sum(mask.numel() for mask in masks.values())
    density = sum(int(mask.sum()) for mask in masks.values()) / entries
    return masks, _with_epoch({"network": None, "keep": density, "epoch": epoch}, path)


def _weight_name(name: str) -> str:
    """``conv1``, ``conv1.mask`` and ``conv1.weight_mask`` as ``conv1.weight``."""
    layer = re.sub(r"(^|\.)(weight|mask|weight_mask)$", "", name)
    return f"{layer}.weight".removeprefix(".")


def _with_epoch(header: dict[str, Any], path: Path) -> dict[str, Any]:
    return header if header["epoch"] is not None else header | {"epoch": epoch_of(path)}


def open_packed_masks(path: Path, *, keep: float | None = None) -> PackedMasks:
    """As :func:`open_masks`, packed; mask files of ours are never unpacked on the way.

    Raises:
        InputError: as :func:`open_masks`.
    """
    if path.suffix == ".safetensors" and _is_ours(path):
        packed, header = load_tensors(path)
        if "shapes" in header:
            return _unpackable(path, packed, header)
    return PackedMasks.from_masks(open_masks(path, keep=keep)[0])
