"""scikit-learn's digits: 1,797 real 8x8 grey images of handwritten digits, embedded in the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s2ap_core.data.memory import InMemory

VAL, TEST = 200, 400


def load(root: Path | None = None, augment: bool = False) -> InMemory:
    """Load 1,197 training, 200 validation and 400 test images, stratified by class.

    The split is fixed: it does not depend on the seed of a run. Pixels are k / 16 for integer k.

    Args:
        root: not used, nothing is read from disk.
        augment: whether training pads by 1, an eighth of the size as on CIFAR-10, crops and flips.
    """
    del root
    from sklearn.datasets import load_digits  # takes a second to import
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8)[:, None], bunch.target
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=0)
    train, val = train_test_split(rest, test_size=VAL, stratify=labels[rest], random_state=0)
    return InMemory(
        "digits",
        10,
        {
            "train": (images[train], labels[train]),
            "val": (images[val], labels[val]),
            "test": (images[test], labels[test]),
        },
        scale=16,
        pad=1 if augment else 0,
        flip=augment,
    )
