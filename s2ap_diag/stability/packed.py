"""The masks of a network, packed once so that comparing them is cheap. Needs numpy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s2ap_core.errors import InputError
from s2ap_core.files.packed import PackedMask

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """The masks of a network by weight name.

    >>> PackedMasks.from_masks({"fc.weight": np.array([[1, 0, 1]])}).layers["fc.weight"].kept
    2
    """

    layers: dict[str, PackedMask]

    @classmethod
    def from_masks(cls, masks: "Mapping[str, Tensor] | Mapping[str, np.ndarray]") -> "PackedMasks":
        """Pack boolean masks, or numbers that are all 0 or 1.

        Raises:
            InputError: naming the first mask that holds another value.
        """
        return cls({name: _pack(name, mask) for name, mask in masks.items()})

    def unpack(self) -> dict[str, np.ndarray]:
        """Return the boolean masks."""
        return {name: mask.unpack() for name, mask in self.layers.items()}

    def named_as(self, other: "PackedMasks") -> "PackedMasks":
        """Return these masks under the other's names, where all of them differ by what stands before: ``net.conv1``."""
        if self.layers.keys() == other.layers.keys() or not self.layers:
            return self
        mine = next(iter(self.layers))
        for name in other.layers:
            if mine.endswith(f".{name}"):
                less = mine.removesuffix(name)
                named = {layer.removeprefix(less): mask for layer, mask in self.layers.items()}
            elif name.endswith(f".{mine}"):
                named = {name.removesuffix(mine) + layer: mask for layer, mask in self.layers.items()}
            else:
                continue
            if named.keys() == other.layers.keys():
                return PackedMasks(named)
        return self


Masks = PackedMasks | Mapping[str, "Tensor"] | Mapping[str, np.ndarray]


def _pack(name: str, mask: "Tensor | np.ndarray") -> PackedMask:
    values = mask.detach().cpu().numpy() if hasattr(mask, "detach") else np.asarray(mask)
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise InputError(f"{name}: not a mask, it holds values other than 0 and 1")
    return PackedMask.from_bytes(np.packbits(values.astype(bool, copy=False)), values.shape)
