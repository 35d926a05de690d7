"""Images of one's own: an .npz of x and y, a folder for each class, or whatever a factory returns.

All of them end as an :class:`InMemory`, so that order, augmentation and checksums are those of the other data sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from s2ap_core.data.base import Dataset, Split, hold_out, reason
from s2ap_core.data.imagenet import FORMATS, class_names, list_images
from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError
from s2ap_core.files.arrays import load_arrays
from s2ap_core.files.kinds import check_input

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TEST_SHARE, VAL_SHARE = 0.2, 0.1
"""Of images that are not split, and of those that are trained on: what is held out where no split is given."""

IMAGES = ("x", "image", "images", "img", "input", "inputs", "pixel_values", "data")
LABELS = ("y", "label", "labels", "target", "targets", "class")
"""Keys of a batch that is a mapping."""

Arrays = tuple[np.ndarray, np.ndarray]


def is_path(name: str) -> bool:
    """Return whether the name of a data set is that of an .npz file or a folder that is there."""
    return (name.endswith(".npz") and os.path.isfile(name)) or os.path.isdir(name)


def load_path(name: str, size: int | None = None, augment: bool = False) -> InMemory:
    """Load an .npz file, or a folder of images.

    The file holds ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` and perhaps those of ``val``;
    images [N, C, H, W], [N, H, W, C] or [N, H, W], bytes or floats in [0, 1]. The folder holds CLASS/IMAGE, or
    train/CLASS/IMAGE, test/CLASS/IMAGE and perhaps val/CLASS/IMAGE. Splits that are not there are held out by class.

    Args:
        size: of a folder's images, which are resized to it; None where all are square and alike.
        augment: whether training pads by an eighth, crops and flips.

    Raises:
        InputError: naming the file, if it cannot be used.
    """
    try:
        if os.path.isdir(name):
            return in_memory(name, _folder(Path(name), size), augment)
        if size is not None:
            raise InputError("size is of folders of images; leave it out")
        return in_memory(name, _npz(Path(name)), augment)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def adapt(name: str, made: Any) -> Dataset:
    """Make a data set of what a factory returned.

    That is one of ours; or a torch Dataset, a DataLoader, an iterable of batches or a pair of arrays (x, y); or a
    mapping of them by split (``train``, ``val``, ``test``), or a tuple of train and test. Of a DataLoader the Dataset
    is read, in its own order, through its ``collate_fn``. Everything is read once: what draws at random draws once.

    Raises:
        InputError: if it is none of these, chooses images by a sampler, has no labels, or images beyond [0, 1].
    """
    if all(hasattr(made, attribute) for attribute in ("batches", "checksum", "classes", "count")):
        ours: Dataset = made
        return ours
    if isinstance(made, tuple | list) and len(made) == 2 and not _is_pair(made):
        made = {"train": made[0], "test": made[1]}
    if not (isinstance(made, Mapping) and made.keys() & set(SPLITS)):
        made = {"all": made}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        try:
            return in_memory(name, {split: _read(part, split) for split, part in made.items()})
        except InputError as error:
            raise InputError(f"data set {name}: {error}") from error


def in_memory(name: str, splits: Mapping[str, Arrays], augment: bool = False) -> InMemory:
    """Hold out the splits that are not there, and check all.

    Args:
        splits: images [N, C, H, W] and labels [N]; ``all`` alone, or ``train`` with others.

    Raises:
        InputError: if images are not square, of other shapes or beyond [0, 1], or labels are not 0 to classes - 1.
    """
    given: dict[str, Arrays] = dict(splits)
    for split, (x, y) in given.items():
        if len(y) != len(x) or not len(y) or y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0:
            raise InputError(f"{split} has labels that are not one whole number from 0 for each image; mend them")
    if "all" in given:
        x, y = given.pop("all")
        rest, test = hold_out(y, max(1, round(TEST_SHARE * len(y))))
        given |= {"train": (x[rest], y[rest]), "test": (x[test], y[test])}
    if "train" not in given or "test" not in given:
        raise InputError(f"has the splits {', '.join(given)}; give train and test")
    if "val" not in given:
        x, y = given["train"]
        rest, val = hold_out(y, max(1, round(VAL_SHARE * len(y))))
        given |= {"train": (x[rest], y[rest]), "val": (x[val], y[val])}
    classes = 1 + max(int(y.max()) for _, y in given.values() if len(y))
    if classes < 2:
        raise InputError("has images of one class; give labels of two or more")
    shape, bytes_ = given["train"][0].shape[1:], given["train"][0].dtype == np.uint8
    for split, (x, _) in given.items():
        if x.ndim != 4 or x.shape[1:] != shape or x.shape[2] != x.shape[3] or not len(x):
            raise InputError(f"{split} holds images of shape {list(x.shape[1:])}; give square ones, all of one shape")
        if (x.dtype == np.uint8) != bytes_ or not (bytes_ or (x.min() >= 0 and x.max() <= 1)):  # also for NaN
            raise InputError(f"{split} holds values beyond [0, 1] or of another type; let the network normalise them")
    arrays = {split: (x if bytes_ else x.astype(np.float32), y) for split, (x, y) in given.items()}
    pad = max(1, shape[1] // 8) if augment else 0
    return InMemory(name, classes, {s: arrays[s] for s in SPLITS}, scale=255 if bytes_ else 1, pad=pad, flip=augment)


def _npz(path: Path) -> dict[str, Arrays]:
    try:
        held = load_arrays(path)
    except ValueError as error:
        raise InputError(f"truncated, or not plain arrays ({reason(error)}); save it with numpy.savez") from error
    names: dict[str, tuple[str, str]] = {split: (f"x_{split}", f"y_{split}") for split in SPLITS}
    names |= {"all": ("x", "y")}
    found = {split: pair for split, pair in names.items() if held.keys() >= set(pair)}
    if not found:
        raise InputError(f"holds {', '.join(held) or 'nothing'}; save x and y, or x_train, y_train, x_test, y_test")
    columns = {y: held[y][:, 0] if held[y].shape[1:] == (1,) else held[y] for _, y in found.values()}
    return {split: (_channels_first(held[x]), columns[y]) for split, (x, y) in found.items()}


def _channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    return x


def _folder(path: Path, size: int | None) -> dict[str, Arrays]:
    split: list[str] = [name for name in SPLITS if (path / name).is_dir()]
    classes = class_names(path / split[0] if split else path)
    found: dict[str, Arrays] = {}
    for name in [*split] or ["all"]:
        base = path / name if split else path
        files, labels = list_images(base, classes)
        images = [_image(base / os.fsdecode(file), size) for file in files]
        if len({image.shape for image in images}) > 1:
            raise InputError(f"{base} holds images of different shapes; give data.options.size to resize them")
        # Not class by class: the first n images are then a fair sample.
        shuffled = np.random.default_rng(0).permutation(len(labels))
        found[name] = (np.stack(images)[shuffled], labels[shuffled])
    return found


def _image(file: Path, size: int | None) -> np.ndarray:
    try:
        check_input(file)
        with Image.open(file, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{file}: more than 8 bits a pixel ({image.mode}); scale it to 8 bits")
            grey = image.mode in ("1", "L")
            small = image.convert("L" if grey else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: not an image that can be read ({reason(error)}); copy it again") from error
    if size is not None:
        small = small.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(small)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _is_pair(made: Any) -> bool:
    return all(isinstance(part, np.ndarray | Tensor) for part in made)


def _read(part: Any, split: str) -> Arrays:
    """Read all images and labels of one split."""
    if isinstance(part, tuple | list) and len(part) == 2 and _is_pair(part):
        x, y = (np.asarray(entry) for entry in part)
        return _channels_first(x), y
    items = list(_items(_loaded(part) if isinstance(part, DataLoader) else part))
    if not items:
        raise InputError(f"{split} has no images")
    batched = items[0][1].ndim > 0
    join = np.concatenate if batched else np.stack
    shapes = {x.shape[1:] if batched else x.shape for x, _ in items}
    if len(shapes) > 1:
        raise InputError(f"{split} holds images of different shapes, {' and '.join(map(str, sorted(shapes)[:2]))}")
    return _channels_first(join([x for x, _ in items])), join([y for _, y in items])


def _loaded(loader: DataLoader[Any]) -> Any:
    """Return what a DataLoader reads, in its data set's order; batches where it collates them by code of the user's.

    Raises:
        InputError: if its sampler leaves images out or repeats them.
    """
    data = loader.dataset
    if not isinstance(data, IterableDataset):
        batches = loader.batch_sampler
        sampler = batches.sampler if type(batches) is BatchSampler else loader.sampler if batches is None else batches
        whole = type(sampler) is SequentialSampler or (
            type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(data)  # type: ignore[arg-type]
        )
        if not whole:
            raise InputError(
                f"a DataLoader with a {type(sampler).__name__}, which chooses images; give its data set, or a "
                "torch.utils.data.Subset of it"
            )
    if loader.collate_fn in (default_collate, default_convert):
        return data
    return DataLoader(data, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def _items(source: Any) -> Iterator[Arrays]:
    drawn = isinstance(source, IterableDataset)  # which may have a length, and inherits the other
    if not drawn and hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        held = source
        source = (held[i] for i in range(len(held)))
    elif not isinstance(source, Iterable):
        raise InputError(f"a {type(source).__name__} is no data set; return a torch Dataset, a DataLoader or arrays")
    for item in source:
        if isinstance(item, Mapping):
            x, y = (next((item[key] for key in keys if key in item), None) for keys in (IMAGES, LABELS))
        else:
            x, y = (item[0], item[1]) if isinstance(item, tuple | list) and len(item) > 1 else (item, None)
        if y is None or x is None:
            has = f"keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
            raise InputError(f"a batch without labels ({has}); give (x, y), or x and y by name")
        yield _pixels(x), np.asarray(y)


def _pixels(x: Any) -> np.ndarray:
    pixels = np.asarray(x)
    if isinstance(x, Image.Image) or (pixels.ndim == 3 and pixels.shape[0] not in (1, 3) and pixels.shape[2] in (1, 3)):
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return pixels
