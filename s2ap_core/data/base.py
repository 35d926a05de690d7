"""What every data set offers: batches on a device that are functions of a seed alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.seeds import generator

Split = Literal["train", "val", "test"]
Part = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Batch(NamedTuple):
    """B images of one split."""

    x: Tensor  # [B, C, H, W] float32 in [0, 1]
    y: Tensor  # [B] int64, class
    index: Tensor  # type: ignore[assignment]  # [B] int64, position in the split; hides tuple.index


class Dataset(Protocol):
    """Three splits of labelled images. The validation split never holds a training or a test image."""

    name: str
    classes: int
    channels: int
    size: int  # height and width in pixels

    def count(self, split: Split) -> int:
        """Count the images in ``split``.

        Raises:
            InputError: if the data set has no such split.
        """

    def labels(self, split: Split) -> Tensor:
        """Return the classes of all images of ``split``, [N] int64, on the data set's device."""

    def checksum(self, split: Split) -> str:
        """Hash the images and classes of ``split`` and their order: other images give another checksum.

        Raises:
            InputError: if the data set has no such split.
        """

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data set with its batches on ``device``."""

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
        """Go through ``split`` once, the last and possibly smaller batch included.

        Order and augmentation are functions of the seed ``shuffle`` alone: the batch size, the limit
        and the device change neither, so image i is augmented in the same way whatever batch it is in.

        Args:
            split: which images.
            batch_size: images in a batch.
            shuffle: seed of the order and of the augmentation; None keeps the split's own order.
            augment: augment as is usual for the data set; some data sets are never augmented.
            limit: stop after this many images.
            part: picks what is loaded here from the positions of each batch, [B] int64, and may join batches; None
                loads it all. See :mod:`s2ap_core.distributed`. A batch may come out empty.

        Raises:
            InputError: if the data set has no such split.
            ValueError: if ``augment`` comes without a seed.
        """


def order(count: int, shuffle: int | None, limit: int | None, augment: bool) -> Tensor:
    """Return the positions in a split in the order they are visited, [min(count, limit)] int64 on the CPU."""
    if augment and shuffle is None:
        raise ValueError("augmentation needs a seed: pass shuffle")
    if shuffle is None:
        positions = torch.arange(count)
    else:
        positions = torch.randperm(count, generator=generator("cpu", shuffle, "order"))
    return positions[:limit]


def cut(visit: Tensor, batch_size: int, part: Part | None) -> Sequence[Tensor]:
    """Select the positions of each batch that is loaded here, given those of all images in the order of the visit."""
    batches = visit.split(min(batch_size, len(visit) or 1))  # torch refuses sizes beyond 64 bits
    return batches if part is None else part(batches)


def without_lone_image(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the same batches, but join a last batch of a single image to the one before it.

    BatchNorm has no statistics of a single image whose map is one pixel, and bad ones of a larger map. Where all
    batches are of one image, that is what the user asked for.
    """
    if len(batches) < 2 or len(batches[-1]) > 1 or len(batches[-2]) == 1:
        return batches
    return [*batches[:-2], torch.cat([batches[-2], batches[-1]])]


def hold_out(labels: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split N images into the rest and ``count`` held-out ones, each class in its own proportion.

    How many images a class gives follows Webster's apportionment (shares rounded), but no class gives a second
    image before each has given one.

    scikit-learn's stratified split cannot do this: it refuses classes of one image and held-out sets
    smaller than the number of classes.

    Args:
        labels: [N] classes.
        count: images to hold out.
        seed: which of the possible splits; a fixed number, never the run's seed, so that all runs agree.

    Returns:
        Positions of the rest and of the held-out images, both ascending.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    # Each image's quantile within its class: the lowest `count` take the same share of every class.
    quantile = np.concatenate([np.r_[0, (np.arange(1, size) + 0.5) / size] for size in sizes])
    chosen = np.argsort(quantile, kind="stable")
    return np.sort(by_class[chosen[count:]]), np.sort(by_class[chosen[:count]])


def validation_count(name: str, val: int, available: int) -> int:
    """Count the images to hold out: ``val``, but at most a tenth of the ``available`` training images.

    Raises:
        InputError: if ``val`` is below one or there are not at least two images.
    """
    if val < 1:
        raise InputError(f"data set {name}: val = {val}, but at least one image must be held out")
    if available < 2:
        raise InputError(f"data set {name}: {available} training images, too few to hold one out")
    return min(val, max(1, available // 10))


def folder(name: str, root: Path | None, inner: str) -> Path:
    """Return ``root / inner`` where it exists, otherwise ``root``: users have their data both ways.

    Raises:
        InputError: if ``root`` is None or no folder.
    """
    if root is None:
        raise InputError(f"data set {name} is read from a folder: set its root, --root or data.root")
    if not os.path.isdir(root):  # pathlib's raises for names that no file can have
        raise InputError(f"{root}: no such folder; {remedy(name)}")
    return root / inner if (root / inner).is_dir() else root


def remedy(name: str) -> str:
    """Say what to do about files of ``name`` that are missing or cannot be used."""
    return f"get the published files with `s2ap-diag data fetch {name} --root DIR`"


def reason(error: Exception) -> str:
    """Give the first line of what ``error`` says, or its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def check_images(name: str, path: Path, images: object, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return ``images`` if it is a uint8 array of this shape, None standing for any length.

    Raises:
        InputError: naming ``path``.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise InputError(f"{path}: its images are not an array of bytes; {remedy(name)}")
    if images.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, images.shape, strict=True)):
        wanted = ", ".join("N" if n is None else str(n) for n in shape)
        raise InputError(f"{path}: images of shape {list(images.shape)}, not [{wanted}]; {remedy(name)}")
    return images


def check_labels(name: str, path: Path, labels: object, count: int, classes: range) -> np.ndarray:
    """Return ``labels`` as [count] int64 if they are that many integers within ``classes``.

    Raises:
        InputError: naming ``path``.
    """
    # Of lists within lists, which a pickle may share, numpy would make an array of any size.
    flat = isinstance(labels, np.ndarray) or (isinstance(labels, list) and all(isinstance(n, int) for n in labels))
    integers = np.asarray(labels if flat else None)
    if integers.ndim != 1 or integers.dtype.kind not in "iu":
        raise InputError(f"{path}: its labels are not a list of integers; {remedy(name)}")
    if len(integers) != count:
        raise InputError(f"{path}: {count} images but {len(integers)} labels; {remedy(name)}")
    outside = np.flatnonzero((integers < classes[0]) | (integers > classes[-1]))
    if len(outside):
        label = f"label {integers[outside[0]]} of image {outside[0]}"
        raise InputError(f"{path}: {label} is not in {classes[0]}..{classes[-1]}; {remedy(name)}")
    return integers.astype(np.int64)
