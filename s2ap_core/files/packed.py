"""Masks packed eight entries to a byte, and the files that hold them, read without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from s2ap_core.errors import InputError
from s2ap_core.files.header import Content, read


@dataclass(frozen=True, eq=False)
class PackedMask:
    """One layer's mask, 64 entries to a word.

    Attributes:
        words: uint64 [ceil(entries / 64)], row-major, the bits behind the last entry zero.
        shape: of the mask.
    """

    words: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def from_bytes(cls, packed: np.ndarray, shape: Sequence[int]) -> "PackedMask":
        """Build a mask of this shape from what ``numpy.packbits`` gives for it: uint8, eight entries to a byte.

        Raises:
            InputError: if it has another number of bytes, or bits behind the last entry.
        """
        entries = math.prod(shape)
        packed = np.ascontiguousarray(packed, dtype=np.uint8).reshape(-1)
        if len(packed) != -(-entries // 8):
            raise InputError(f"{len(packed)} bytes cannot be a packed mask of {entries} entries")
        if entries % 8 and packed[-1] & (0xFF >> entries % 8):
            raise InputError(f"a packed mask has bits behind its last entry, number {entries}")
        words = np.zeros(-(-len(packed) // 8), dtype=np.uint64)
        words.view(np.uint8)[: len(packed)] = packed
        return cls(words, tuple(shape))

    @property
    def entries(self) -> int:
        """Number of entries of the mask."""
        return math.prod(self.shape)

    @cached_property
    def kept(self) -> int:
        """Number of ones."""
        return int(np.bitwise_count(self.words).sum(dtype=np.int64))

    def unpack(self) -> np.ndarray:
        """Unpack the mask, boolean, of its shape."""
        return np.unpackbits(self.words.view(np.uint8), count=self.entries).astype(bool).reshape(self.shape)


def load_packed(path: Path) -> tuple[dict[str, PackedMask], dict[str, Any]]:
    """Read a mask file of ours, and check its header against the bytes of the masks.

    Returns:
        The masks by weight name (``conv1.weight``), in the network's order, and the header.

    Raises:
        InputError: as :func:`s2ap_core.files.header.read`, or if the file holds no packed masks.
    """
    arrays, header = read(path, "numpy", _content)
    shapes = header.get("shapes")
    if not isinstance(shapes, dict) or not shapes:
        raise InputError(f"{path}: not a mask file; masks lie in RUN/masks")
    if shapes.keys() != arrays.keys():
        raise InputError(f"{path}: not a mask file, its shapes are of other layers; make it again")
    masks = {}
    for name, shape in shapes.items():
        whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
        if not whole or arrays[name].dtype != np.uint8:
            raise InputError(f"{path}: {name} is no packed mask of shape {shape}; make it again")
        try:
            masks[name] = PackedMask.from_bytes(arrays[name], shape)
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}; make it again") from error
    return masks, header


def _content(array: np.ndarray) -> Content:
    return Content(f"torch.{array.dtype}", array.shape, array.reshape(-1).view(np.uint8).data)
