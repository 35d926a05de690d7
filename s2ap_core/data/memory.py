"""Data sets that fit in memory: kept as uint8 on the device, converted and augmented there by batch."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s2ap_core.data.base import Batch, Part, Split, cut, order
from s2ap_core.errors import InputError
from s2ap_core.seeds import generator


class InMemory:
    """A :class:`~s2ap_core.data.Dataset` held in memory, as bytes or, where they are no bytes, as floats.

    Args:
        name: as in the registry.
        classes: number of classes.
        splits: for each split the images, [N, C, H, W] uint8 or float32, and their classes, [N].
        scale: the number that stands for 1.0.
        pad: augmentation: zeros on each side before a random crop of the original size.
        flip: augmentation: mirror horizontally with probability one half.

    Raises:
        ValueError: if the images are neither.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        splits: Mapping[Split, tuple[np.ndarray, np.ndarray]],
        *,
        scale: int = 255,
        pad: int = 0,
        flip: bool = False,
    ) -> None:
        self.name, self.classes = name, classes
        self.scale, self.pad, self.flip = scale, pad, flip
        if any(images.dtype not in (np.uint8, np.float32) for images, _ in splits.values()):
            raise ValueError(f"data set {name}: images are kept as uint8 or float32, with scale for 1.0")
        self._splits: dict[Split, tuple[Tensor, Tensor]] = {
            split: (_row_major(images), torch.tensor(labels, dtype=torch.int64))
            for split, (images, labels) in splits.items()
        }
        _, self.channels, self.size, _ = next(iter(self._splits.values()))[0].shape

    def _split(self, split: Split) -> tuple[Tensor, Tensor]:
        if split not in self._splits:
            raise InputError(f"data set {self.name} has no {split} split, only {', '.join(self._splits)}")
        return self._splits[split]

    def count(self, split: Split) -> int:
        """Count the images in ``split``."""
        return len(self._split(split)[1])

    def labels(self, split: Split) -> Tensor:
        """Return the classes of all images of ``split``, [N] int64."""
        return self._split(split)[1]

    def checksum(self, split: Split) -> str:
        """Hash all bytes and classes of ``split``, and how training augments them: 16 digits of SHA-256."""
        pad, flip = (self.pad, self.flip) if split == "train" else (0, False)
        digest = hashlib.sha256(f"{self.classes} {self.scale} {pad} {flip}".encode())
        for tensor in self._split(split):
            digest.update(f"{list(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> InMemory:
        """Return the same data set on ``device``; this one stays where it is."""
        moved = copy.copy(self)
        moved._splits = {split: (x.to(device), y.to(device)) for split, (x, y) in self._splits.items()}
        return moved

    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: int | None = None,
        augment: bool = False,
        limit: int | None = None,
        part: Part | None = None,
    ) -> Iterator[Batch]:
        """Go through ``split`` once; see :meth:`s2ap_core.data.Dataset.batches`."""
        images, labels = self._split(split)
        visit = order(len(labels), shuffle, limit, augment).to(images.device)
        augment = augment and (self.pad > 0 or self.flip)
        if augment:
            assert shuffle is not None
            shifts, mirrored = (t.to(images.device) for t in self._draw(len(labels), shuffle))
        for index in cut(visit, batch_size, part):
            x = images[index]
            if augment:
                x = crop_and_flip(x, self.pad, shifts[index], mirrored[index])
            yield Batch(x.float().div_(self.scale), labels[index], index)

    def _draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        # Drawn on the CPU for the whole split: a seed then means the same on every device.
        rng = generator("cpu", seed, "augment")
        shifts = torch.randint(0, 2 * self.pad + 1, (count, 2), generator=rng)
        mirrored = torch.rand(count, generator=rng) < (0.5 if self.flip else 0.0)
        return shifts, mirrored


def crop_and_flip(x: Tensor, pad: int, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Pad with zeros, crop each image at its own place to its old size, mirror those marked.

    Args:
        x: [B, C, H, W].
        pad: pixels added on each side.
        shifts: [B, 2] int64 in [0, 2 * pad]: top row and left column of each crop in the padded image.
        mirrored: [B] bool: mirror this crop horizontally.

    Returns:
        [B, C, H, W], of x's type.
    """
    batch, channels, height, width = x.shape
    rows = shifts[:, :1] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(batch, width)
    columns = shifts[:, 1:] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    return F.pad(x, (pad,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _row_major(images: np.ndarray) -> Tensor:
    """Make a copy with the strides of [N, C, H, W], also where C is 1.

    numpy gives an axis of length 1 any stride. torch takes grey images with a channel stride of 1 for channels last,
    and oneDNN's channels-last 1x1 convolution of stride 2 writes past its buffer where there are fewer than eight
    input channels and no AVX-512.
    """
    return torch.from_numpy(images).clone(memory_format=torch.contiguous_format)
