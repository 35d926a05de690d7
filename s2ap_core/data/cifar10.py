"""CIFAR-10 in its published python format: the folder ``cifar-10-batches-py`` of pickled batches.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from s2ap_core.data.base import check_images, check_labels, folder, hold_out, reason, remedy, validation_count
from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input
from s2ap_core.files.rehearsal import TooMuch, rehearsed

NAME, FOLDER = "cifar10", "cifar-10-batches-py"
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"


def load(root: Path | None = None, val: int = 1000, augment: bool = True) -> InMemory:
    """Load CIFAR-10; padded by 4, cropped and flipped when augmented.

    The validation split is held out from the 50,000 training images, stratified by class and the same in
    every run: ``val`` images, at most a tenth of those that are there. It keeps the order of the files.

    Args:
        root: the folder of the batches, or the one that holds ``cifar-10-batches-py``.
        val: images held out from training.
        augment: whether training pads, crops and flips.

    Raises:
        InputError: naming the file that is missing, truncated, mislabelled or not a batch.
    """
    base = folder(NAME, root, FOLDER)
    batches = [read_batch(base / name) for name in TRAIN]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    train, held = hold_out(labels, validation_count(NAME, val, len(labels)))
    return InMemory(
        NAME,
        10,
        {
            "train": (images[train], labels[train]),
            "val": (images[held], labels[held]),
            "test": read_batch(base / TEST),
        },
        pad=4 if augment else 0,
        flip=augment,
    )


def parts(root: Path | None) -> Iterator[tuple[Path, Callable[[Path], int]]]:
    """List the files that make up the data set, each with the function that counts its images."""
    base = folder(NAME, root, FOLDER)
    for name in (*TRAIN, TEST):
        yield base / name, lambda path: len(read_batch(path)[1])


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images, [N, 3, 32, 32] uint8, and labels, [N] int64, of one pickled batch.

    Raises:
        InputError: if the file is missing, truncated, mislabelled, not a batch, or asks for memory or time out of
            proportion to its size.
    """
    check_input(path)
    try:
        batch = rehearsed(lambda: _load(path), path.stat().st_size)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {remedy(NAME)}") from None
    except (ForbiddenPickle, TooMuch) as error:
        raise InputError(f"{path}: refused, {error}; {remedy(NAME)}") from None
    except Exception as error:  # a broken pickle can raise nearly anything
        raise InputError(f"{path}: truncated or not a pickled batch ({reason(error)}); {remedy(NAME)}") from None
    if isinstance(batch, dict):  # who read it with encoding="bytes" and wrote it again has bytes for names
        batch = {key.decode("latin1") if isinstance(key, bytes) else key: entry for key, entry in batch.items()}
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise InputError(f"{path}: not a CIFAR-10 batch, it has no data and labels; {remedy(NAME)}")
    data, classes = (e.values if isinstance(e, PickledArray) else e for e in (batch["data"], batch["labels"]))
    images = check_images(NAME, path, data, (None, 3 * 32 * 32))
    labels = check_labels(NAME, path, classes, len(images), range(10))
    return images.reshape(-1, 3, 32, 32), labels


def _load(path: Path) -> object:
    with path.open("rb") as file:
        return ArrayUnpickler(file, encoding="latin1").load()


class ForbiddenPickle(Exception):
    """A pickle that asks for something other than numpy arrays and plain containers."""


def _latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes into pickles of protocol 2; `codecs.encode` itself would open every codec.
    if encoding != "latin1":
        raise ForbiddenPickle(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


class PickledType:
    """Stands for a numpy type while it is unpickled: its name, then its byte order as its state."""

    def __init__(self, name: object, *_: object) -> None:
        if not (isinstance(name, str) and re.fullmatch(r"[<>|=]?[biuf]\d", name)):
            raise ForbiddenPickle(f"it asks for arrays of {name!r:.40}, a batch holds numbers alone")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """Stands for a numpy array while it is unpickled: empty at first, then its content as its state."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote its bytes as text
        self.values = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _array_from_buffer(raw: Any, kind: PickledType, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    array.values = np.frombuffer(raw, kind.dtype).reshape(shape, order=order)
    return array


def _number(kind: PickledType, raw: Any) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    (number,) = np.frombuffer(raw, kind.dtype).tolist()
    return number


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers, and refuses to look up anything else, let alone call it.

    numpy's own constructors are not called either: given a type that holds objects but whose state denies it, they
    make an array that takes the file's bytes for addresses.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
        ("numpy", "dtype"): PickledType,
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
        ("numpy._core.multiarray", "scalar"): _number,
        ("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Find what stands for the numpy constructor of this name.

        Raises:
            ForbiddenPickle: if it is not one of :attr:`ALLOWED`.
        """
        # numpy 2 renamed the module; the published batches carry the old name.
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in self.ALLOWED:
            raise ForbiddenPickle(f"it asks for {module}.{name}, a batch holds arrays and containers alone")
        return self.ALLOWED[module, name]
