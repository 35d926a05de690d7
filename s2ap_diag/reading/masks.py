"""Files that hold masks and no weights: ours, packed, and arrays of 0 and 1. Read with numpy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2ap_core.errors import InputError
from s2ap_core.files.arrays import load_arrays
from s2ap_core.files.packed import load_packed
from s2ap_core.foreign.names import split_kind, without_prefix
from s2ap_diag.reading.files import Kind, epoch_of
from s2ap_diag.stability.packed import PackedMasks

if TYPE_CHECKING:
    import torch

    from s2ap_core.runs.checkpoints import Checkpoint


@dataclass(frozen=True, eq=False)
class MaskFile:
    """Masks by weight name (``conv1.weight``), and what their file says of them.

    Attributes:
        header: at least ``network``, ``keep`` and ``epoch``, None where unknown.
    """

    path: Path
    header: dict[str, Any]
    masks: PackedMasks

    @property
    def kind(self) -> Kind:
        """Say that these are masks."""
        return "masks"

    def as_masks(self) -> "MaskFile":
        """Return the masks as they are."""
        return self

    def as_checkpoint(self, device: "torch.device | str" = "cpu") -> "Checkpoint":
        """Refuse: a network's weights are not here.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.path}: holds masks and no weights; give a checkpoint, such as those in RUN/ckpt")


def read_packed(path: Path) -> MaskFile:
    """Read a mask file of ours.

    Raises:
        InputError: if it is damaged, or its masks are not those that its header says.
    """
    masks, header = load_packed(path)
    return MaskFile(path, header, PackedMasks(masks))


def read_arrays(path: Path) -> MaskFile:
    """Read the arrays of a .npz file, or the one of a .npy file under the name ``weight``.

    Raises:
        InputError: if the file is missing or damaged, or its arrays are no masks.
    """
    try:
        arrays = load_arrays(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(
            f"{path}: truncated, or not plain arrays of 0 and 1; copy it again or save it with numpy.savez"
        ) from error
    try:
        return plain_masks(path, without_prefix(arrays))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def plain_masks(path: Path, arrays: Mapping[str, np.ndarray], epoch: int | None = None) -> MaskFile:
    """Take arrays of 0 and 1, under whatever names, for masks.

    Args:
        path: where they were read.
        epoch: as the file says it; None takes it from its name.

    Raises:
        InputError: if there are none, an empty one or two for a layer, or if they hold other values.
    """
    masks = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise InputError(f"{name} holds values other than 0 and 1; give masks")
        masks[_weight_name(name)] = array.astype(bool)
    if not masks or len(masks) < len(arrays) or not all(mask.size for mask in masks.values()):
        raise InputError("holds no masks, an empty one, or two for one layer; give one array for each layer")
    kept, entries = sum(int(mask.sum()) for mask in masks.values()), sum(mask.size for mask in masks.values())
    header = {"network": None, "keep": kept / entries, "epoch": epoch_of(path) if epoch is None else epoch}
    return MaskFile(path, header, PackedMasks.from_masks(masks))


def _weight_name(name: str) -> str:
    """Turn ``conv1``, ``conv1.mask`` and ``conv1.weight_mask`` into ``conv1.weight``; attention's as torch has them."""
    layer, kind = split_kind(name)
    return f"{layer}weight" if kind in ("weight", "mask", "weight_mask") else f"{name}.weight".removeprefix(".")
