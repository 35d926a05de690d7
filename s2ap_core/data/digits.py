"""scikit-learn's digits: 1,797 real 8x8 grey images of handwritten digits, embedded in the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError

VAL, TEST = 200, 400

FOLDS = 5
"""Parts of equal size, each of which can be the test split; every image is in one of them."""


def load(root: Path | None = None, augment: bool = False, fold: int | None = None) -> InMemory:
    """Load 1,197 training, 200 validation and 400 test images, or a fold's; stratified by class.

    The split is fixed: it does not depend on the seed of a run. Pixels are k / 16 for integer k.

    Args:
        root: not used, nothing is read from disk.
        augment: whether training pads by 1, an eighth of the size as on CIFAR-10, crops and flips.
        fold: 0 to 4: which fifth of the images is the test split (359 or 360 of them); of the others 200 are for
            validation. None is the split of 400, which is none of the folds.

    Raises:
        InputError: if there is no such fold.
    """
    del root
    if fold is not None and (type(fold) is not int or fold not in range(FOLDS)):
        raise InputError(f"data set digits: fold = {fold!r}: give one of 0 to {FOLDS - 1}, or leave it out")
    from sklearn.datasets import load_digits  # takes a second to import
    from sklearn.model_selection import StratifiedKFold, train_test_split

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8)[:, None], bunch.target
    if fold is None:
        rest, test = train_test_split(np.arange(len(labels)), test_size=TEST, stratify=labels, random_state=0)
    else:
        rest, test = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(images, labels))[fold]
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
