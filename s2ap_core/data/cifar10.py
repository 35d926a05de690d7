"""CIFAR-10 in its published python format: the folder ``cifar-10-batches-py`` of pickled batches.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from s2ap_core.data.base import check_images, check_labels, folder, hold_out, reason, remedy, validation_count
from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError

NAME, FOLDER = "cifar10", "cifar-10-batches-py"
TRAIN, TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"


def load(root: Path | None = None, val: int = 1000) -> InMemory:
    """CIFAR-10; padded by 4, cropped and flipped when augmented.

    The validation split is held out from the 50,000 training images, stratified by class and the same in
    every run: ``val`` images, at most a tenth of those that are there. It keeps the order of the files.

    Args:
        root: the folder of the batches, or the one that holds ``cifar-10-batches-py``.
        val: images held out from training.

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
        pad=4,
        flip=True,
    )


def parts(root: Path) -> Iterator[tuple[Path, Callable[[Path], int]]]:
    """The files that make up the data set, each with the function that counts its images."""
    base = folder(NAME, root, FOLDER)
    for name in (*TRAIN, TEST):
        yield base / name, lambda path: len(read_batch(path)[1])


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, [N, 3, 32, 32] uint8, and labels, [N] int64, of one pickled batch.

    Raises:
        InputError: if the file is missing, truncated, mislabelled or not a batch.
    """
    try:
        with path.open("rb") as file:
            batch = ArrayUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {remedy(NAME)}") from None
    except ForbiddenPickle as error:
        raise InputError(f"{path}: refused, {error}; {remedy(NAME)}") from None
    except Exception as error:  # a broken pickle can raise nearly anything
        raise InputError(f"{path}: truncated or not a pickled batch ({reason(error)}); {remedy(NAME)}") from None
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise InputError(f"{path}: not a CIFAR-10 batch, it has no data and labels; {remedy(NAME)}")
    images = check_images(NAME, path, batch["data"], (None, 3 * 32 * 32))
    labels = check_labels(NAME, path, batch["labels"], len(images), range(10))
    return images.reshape(-1, 3, 32, 32), labels


class ForbiddenPickle(Exception):
    """A pickle that asks for something other than numpy arrays and plain containers."""


def _latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes into pickles of protocol 2; `codecs.encode` itself would open every codec.
    if encoding != "latin1":
        raise ForbiddenPickle(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers and refuses to name, let alone call, anything else."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The numpy constructor of this name.

        Raises:
            ForbiddenPickle: if it is not one of :attr:`ALLOWED`.
        """
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        # numpy 2 renamed the module; the published batches carry the old name.
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in self.ALLOWED:
            raise ForbiddenPickle(f"it asks for {module}.{name}, a batch holds arrays and containers alone")
        return super().find_class(module, name)
