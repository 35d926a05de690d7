"""CIFAR-10-C: the CIFAR-10 test images under common corruptions, one .npy file per corruption.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, ICLR 2019; https://zenodo.org/records/2535967
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from s2ap_core.data.base import check_images, check_labels, folder, reason, remedy
from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input

NAME, FOLDER = "cifar10c", "CIFAR-10-C"
LABELS, SEVERITIES = "labels.npy", 5

# The benchmark's fifteen, over which its mean is taken, and the four that it sets aside for validation.
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def load(root: Path | None, corruption: str, severity: int = 3) -> InMemory:
    """Load one corruption at one severity: a test split alone, 10,000 images in CIFAR-10's test order.

    Args:
        root: the folder of the .npy files, or the one that holds ``CIFAR-10-C``.
        corruption: one of :data:`CORRUPTIONS` or :data:`EXTRA_CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        InputError: if there is no such corruption or severity, or naming the file that is missing,
            truncated, mislabelled or of another format.
    """
    if corruption not in CORRUPTIONS + EXTRA_CORRUPTIONS:
        known = ", ".join(CORRUPTIONS + EXTRA_CORRUPTIONS)
        raise InputError(f"corruption = {corruption!r} is unknown: choose one of {known}")
    if severity not in range(1, SEVERITIES + 1):
        raise InputError(f"severity = {severity}: choose 1 to {SEVERITIES}")
    base = folder(NAME, root, FOLDER)
    images = read_images(base / f"{corruption}.npy")
    labels = read_labels(base / LABELS, len(images))
    # The severities stand one after the other, the same test images each time.
    each = len(images) // SEVERITIES
    chosen = slice((severity - 1) * each, severity * each)
    test = np.ascontiguousarray(images[chosen].transpose(0, 3, 1, 2)), labels[chosen]
    return InMemory(NAME, 10, {"test": test})


def parts(root: Path | None) -> Iterator[tuple[Path, Callable[[Path], int]]]:
    """List the files that make up the data set, each with the function that counts its images.

    The four extra corruptions are counted where they are there; they are not required.
    """
    base = folder(NAME, root, FOLDER)

    def count(path: Path) -> int:
        images = read_images(path)
        if (base / LABELS).is_file():
            read_labels(base / LABELS, len(images))
        return len(images)

    yield base / LABELS, lambda path: len(read_labels(path))
    for corruption in CORRUPTIONS:
        yield base / f"{corruption}.npy", count
    for corruption in EXTRA_CORRUPTIONS:
        if (base / f"{corruption}.npy").is_file():
            yield base / f"{corruption}.npy", count


def read_labels(path: Path, count: int | None = None) -> np.ndarray:
    """Read the labels in 0..9, [N] int64, of all five severities.

    Args:
        path: the file.
        count: the number of images that they must match, if that is known.

    Raises:
        InputError: if the file is missing, truncated or mislabelled.
    """
    labels = read_array(path)
    return check_labels(NAME, path, labels, len(labels) if count is None else count, range(10))


def read_images(path: Path) -> np.ndarray:
    """Map all five severities of a corruption, [5 n, 32, 32, 3] uint8, from the file.

    Raises:
        InputError: if the file is missing, truncated or of another format.
    """
    images = check_images(NAME, path, read_array(path), (None, 32, 32, 3))
    if len(images) == 0 or len(images) % SEVERITIES:
        raise InputError(f"{path}: {len(images)} images, not a multiple of its {SEVERITIES} severities; {remedy(NAME)}")
    return images


def read_array(path: Path) -> np.ndarray:
    """Read the array in a .npy file, mapped; a pickle inside is refused.

    Raises:
        InputError: if the file is missing, truncated or not an array of numbers.
    """
    check_input(path)
    try:
        with np.errstate(over="ignore"):  # of a shape whose product does not fit: refused all the same
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {remedy(NAME)}") from None
    except Exception as error:  # a broken header can raise nearly anything
        raise InputError(f"{path}: truncated or not a .npy array ({reason(error)}); {remedy(NAME)}") from None
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise InputError(f"{path}: not a .npy array of images or labels; {remedy(NAME)}")
    return array
