"""SVHN, cropped digits: ``train_32x32.mat`` and ``test_32x32.mat``.

Source: Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011;
http://ufldl.stanford.edu/housenumbers/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from s2ap_core.data.base import check_images, check_labels, folder, hold_out, reason, remedy, validation_count
from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError
from s2ap_core.files.arrays import RATIO, UNPACKED
from s2ap_core.files.rehearsal import TooMuch, rehearsed

NAME, FOLDER = "svhn", "svhn"
TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"


def load(root: Path | None = None, val: int = 1000, augment: bool = True) -> InMemory:
    """Load SVHN; a digit is its own class (the files write 10 for the digit 0).

    HYDRA and HARP train it padded by 4, cropped and flipped, as CIFAR-10, and so do we.

    The validation split is held out from the 73,257 training images, stratified by class and the same in
    every run: ``val`` images, at most a tenth of those that are there.

    Args:
        root: the folder of the two files, or the one that holds them in ``svhn``.
        val: images held out from training.
        augment: whether training pads, crops and flips.

    Raises:
        InputError: naming the file that is missing, truncated, mislabelled or of another format.
    """
    base = folder(NAME, root, FOLDER)
    images, labels = read_mat(base / TRAIN)
    train, held = hold_out(labels, validation_count(NAME, val, len(labels)))
    return InMemory(
        NAME,
        10,
        {
            "train": (images[train], labels[train]),
            "val": (images[held], labels[held]),
            "test": read_mat(base / TEST),
        },
        pad=4 if augment else 0,
        flip=augment,
    )


def parts(root: Path | None) -> Iterator[tuple[Path, Callable[[Path], int]]]:
    """List the files that make up the data set, each with the function that counts its images."""
    base = folder(NAME, root, FOLDER)
    for name in (TRAIN, TEST):
        yield base / name, lambda path: len(read_mat(path)[1])


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images, [N, 3, 32, 32] uint8, and labels in 0..9, [N] int64, of one file.

    Raises:
        InputError: if the file is missing, truncated, mislabelled, of another format, or asks for memory or time out
            of proportion to its size.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; {remedy(NAME)}")
    try:
        content = rehearsed(lambda: _load(path), path.stat().st_size)
    except TooMuch as error:
        raise InputError(f"{path}: refused, {error}; {remedy(NAME)}") from None
    except Exception as error:  # a broken .mat file can raise nearly anything
        raise InputError(f"{path}: truncated or not a .mat file ({reason(error)}); {remedy(NAME)}") from None
    if not {"X", "y"} <= content.keys():
        raise InputError(f"{path}: not an SVHN file, it has no X and y; {remedy(NAME)}")
    images = check_images(NAME, path, content["X"], (32, 32, 3, None))
    labels = check_labels(NAME, path, content["y"].ravel(), images.shape[-1], range(1, 11))
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels % 10


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat, whosmat  # a third of a second, for this data set alone

    declared = sum(math.prod(shape) for _, shape, _ in whosmat(path))
    if declared > max(UNPACKED, RATIO * path.stat().st_size):
        raise ValueError(f"it unpacks to {declared:,} numbers, over {RATIO} times its size")
    content: dict[str, Any] = loadmat(path, variable_names=["X", "y"])
    return content
