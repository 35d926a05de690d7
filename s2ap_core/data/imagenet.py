"""ImageNet (ILSVRC 2012) as folders: ``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``.

Images are decoded as they are needed, in worker processes, and travel as uint8.

Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from s2ap_core.data.base import Batch, Part, Split, cut, folder, hold_out, order, reason
from s2ap_core.distributed.group import processes_here
from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input
from s2ap_core.seeds import derive_seed

NAME, FOLDER = "imagenet", "imagenet"
LAYOUT = "lay the images out as train/CLASS/*.JPEG and val/CLASS/*.JPEG"
SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
FORMATS = ("JPEG", "PNG")
"""What is decoded, whatever a file is called: for some of the others Pillow starts another program."""
VAL_SHARE = 0.01
SAMPLED = 1000
"""Files of a split whose size is part of its checksum."""


def load(root: Path | None = None, size: int = 224, workers: int | None = None, augment: bool = True) -> ImageFolders:
    """Load ImageNet, or any images in the same layout; the classes are the folder names in sorted order.

    ``val/`` is published with labels and is the test split here. The validation split is held out from
    ``train/``: one percent, at least one image per class, the same in every run. ``train/`` is not
    looked at until it is needed, so that ``val/`` alone is enough to evaluate.

    Within a split the images stand in a fixed random order, not class by class, so that the first n of
    them are a fair sample.

    Args:
        root: the folder of ``train`` and ``val``, or the one that holds them in ``imagenet``.
        size: height and width in pixels; the short side is first resized to 256 / 224 of it.
        workers: processes that decode; None takes one per core, at most 8 and of several processes of a run
            each its part of them; 0 decodes in this process.
        augment: whether training crops at random and flips, instead of cutting out the centre.

    Raises:
        InputError: if a folder is missing or empty, or if the classes of ``train`` and ``val`` differ.
    """
    if size < 1:
        raise InputError(f"size = {size}: an image needs at least one pixel")
    if workers is not None and workers < 0:
        raise InputError(f"workers = {workers}: give 0 or more")
    base = folder(NAME, root, FOLDER)
    cores = max(1, (os.cpu_count() or 1) // processes_here())
    return ImageFolders(base, size, min(8, cores) if workers is None else workers, augment)


def parts(root: Path | None) -> Iterator[tuple[Path, Callable[[Path], int]]]:
    """List the two folders that make up the data set, each with the function that counts its images."""
    base = folder(NAME, root, FOLDER)

    def count(path: Path) -> int:
        names = class_names(path)
        check_classes(base)
        return len(list_images(path, names)[1])

    yield base / "train", count
    yield base / "val", count


def class_names(path: Path) -> list[str]:
    """List the class folders in ``path``, sorted.

    Raises:
        InputError: if there is no such folder or nothing in it.
    """
    if not path.is_dir():
        raise InputError(f"{path}: missing; {LAYOUT}")
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    if not names:
        raise InputError(f"{path}: holds no class folders; {LAYOUT}")
    return names


def check_classes(base: Path) -> None:
    """Raise InputError if ``train`` and ``val`` are both there and have different classes."""
    if (base / "train").is_dir() and (base / "val").is_dir():
        differing = sorted(set(class_names(base / "train")) ^ set(class_names(base / "val")))
        if differing:
            raise InputError(f"{base}: class {differing[0]} is in only one of train and val; {LAYOUT}")


def list_images(path: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """List the images in the class folders ``names`` of ``path``.

    Returns:
        Paths relative to ``path``, [N] bytes (an array, not a list: forked workers then share its
        memory), and classes, [N] int64.

    Raises:
        InputError: if a class has no image.
    """
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(e.name for e in os.scandir(path / name) if Path(e.name).suffix.lower() in SUFFIXES)
        if not images:
            raise InputError(f"{path / name}: holds no .JPEG, .jpg or .png image; {LAYOUT}")
        files += [os.fsencode(f"{name}/{image}") for image in images]
        labels += [label] * len(images)
    return np.array(files), np.array(labels)


class ImageFolders:
    """A :class:`~s2ap_core.data.Dataset` of image files; made by :func:`load`."""

    name, channels = NAME, 3

    def __init__(self, base: Path, size: int, workers: int, augment: bool) -> None:
        self.base, self.size, self.workers, self.augment = base, size, workers, augment
        self.device = torch.device("cpu")
        self.names = class_names(base / "val")
        self.classes = len(self.names)
        check_classes(base)
        self._splits: dict[Split, tuple[Path, np.ndarray, np.ndarray]] = {}

    def _split(self, split: Split) -> tuple[Path, np.ndarray, np.ndarray]:
        # Folder, files and labels; listing the 1.3 million training files takes a while, so it is done once.
        if split not in self._splits:
            path = self.base / ("val" if split == "test" else "train")
            files, labels = list_images(path, class_names(path))
            sizes = np.bincount(labels)
            if split == "test":
                chosen: dict[Split, np.ndarray] = {"test": np.arange(len(labels))}
            elif sizes.min() < 2:
                lone = path / self.names[int(sizes.argmin())]
                raise InputError(f"{lone}: one image, too few to hold one out for validation; {LAYOUT}")
            else:
                count = max(self.classes, round(VAL_SHARE * len(labels)))
                chosen = dict(zip(("train", "val"), hold_out(labels, count), strict=True))
            for name, positions in chosen.items():
                positions = np.random.default_rng(0).permutation(positions)
                self._splits[name] = path, files[positions], labels[positions]
        return self._splits[split]

    def count(self, split: Split) -> int:
        """Count the images in ``split``."""
        return len(self._split(split)[1])

    def labels(self, split: Split) -> Tensor:
        """Return the classes of all images of ``split``, [N] int64."""
        return torch.from_numpy(self._split(split)[2]).to(self.device)

    def checksum(self, split: Split) -> str:
        """Hash the names in order, and the sizes in bytes of some files evenly spread: 16 digits of SHA-256.

        Reading 150 GB would cost more than many an evaluation, and asking a network drive for the size of
        each of a million files minutes.
        """
        path, files, labels = self._split(split)
        plain = split == "train" and not self.augment
        digest = hashlib.sha256(f"{self.size}{' never augmented' * plain}".encode())
        digest.update(b"\0".join(files.tolist()))
        digest.update(labels.astype(np.int64).data)
        for position in np.unique(np.linspace(0, len(files) - 1, SAMPLED).astype(int)):
            digest.update(f"{(path / os.fsdecode(files[position])).stat().st_size} ".encode())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> ImageFolders:
        """Return the same data set with its batches on ``device``; decoding stays on the CPU."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
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
        """Go through ``split`` once; see :meth:`s2ap_core.data.Dataset.batches`.

        Raises:
            InputError: naming the image that cannot be decoded.
        """
        path, files, labels = self._split(split)
        positions = cut(order(len(labels), shuffle, limit, augment), batch_size, part)
        loader = DataLoader(
            Decoder(path, files, self.size, shuffle if augment and self.augment else None),
            batch_size=None,  # the sampler's items are whole batches
            sampler=[index.tolist() for index in positions],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the loader would advance torch's global generator
        )
        for index, decoded in zip(positions, loader, strict=True):
            if isinstance(decoded, str):
                raise InputError(decoded)
            x = decoded.to(self.device, non_blocking=True).float().div_(255)
            y = torch.from_numpy(labels[index.numpy()])
            yield Batch(x, y.to(self.device), index.to(self.device))


@dataclass(frozen=True)
class Decoder(torch.utils.data.Dataset[Tensor | str]):
    """Decodes batches of files; augments where it has a seed. It is what the workers hold."""

    path: Path
    files: np.ndarray  # [N] bytes, relative to path
    size: int
    seed: int | None

    def __getitem__(self, positions: list[int]) -> Tensor | str:
        """Read images [B, 3, size, size] uint8; where one is broken, return the line that says so.

        A string, because an exception would leave a worker with its traceback in its message.
        """
        images = []
        if not positions:  # of a batch with fewer images than there are processes
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        for position in positions:
            file = self.path / os.fsdecode(self.files[position])
            try:
                check_input(file)
                with Image.open(file, formats=FORMATS) as image:
                    rgb = image.convert("RGB")
            except InputError as error:
                return str(error)
            except Exception as error:  # PIL raises OSError, SyntaxError, struct.error and others
                return f"{file}: not an image that can be decoded ({reason(error)}); replace it"
            if self.seed is None:
                view = centre_crop(rgb, self.size)
            else:
                rng = random.Random(derive_seed(self.seed, "augment", position))
                view = random_resized_crop(rgb, self.size, rng)
            images.append(np.asarray(view))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to 256 / 224 of ``size`` pixels and cut the central square of ``size``."""
    width, height = image.size
    short = round(size * 256 / 224)
    scale = short / min(width, height)
    resized = (max(short, int(width * scale)), max(short, int(height * scale)))
    image = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Cut 8 to 100 % of the area at an aspect of 3/4 to 4/3, resize it to ``size``, mirror every other one.

    Source: Szegedy et al., Going Deeper with Convolutions, CVPR 2015; after ten crops that do not fit, the
    largest central one of a permitted aspect, as is usual.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            break
    else:
        w = min(width, max(1, round(height * 4 / 3)))
        h = min(height, max(1, round(width * 4 / 3)))
        left, top = (width - w) // 2, (height - h) // 2
    crop = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
