"""The data sets: one file each, one line each in :data:`DATASETS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s2ap_core.data import cifar10, cifar10c, digits, imagenet, svhn
from s2ap_core.data.base import Batch, Dataset, Split
from s2ap_core.data.memory import InMemory
from s2ap_core.errors import InputError

__all__ = ["DATASETS", "Batch", "Dataset", "InMemory", "Split", "load"]

# Name -> loader; a loader takes the folder and the options of its own data set.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "cifar10c": cifar10c.load,
    "svhn": svhn.load,
    "imagenet": imagenet.load,
}


# For the type of an option's default: what the option takes.
EXPECTED = {bool: "true or false", int: "a whole number"}


def load(name: str, root: Path | None = None, **options: Any) -> Dataset:
    """Load the data set ``name`` from the folder ``root``.

    Args:
        name: a key of :data:`DATASETS`.
        root: folder with the published files; digits needs none.
        options: the data set's own, such as ``corruption="fog", severity=3`` of cifar10c.

    Raises:
        InputError: if there is no such data set or option, or if its files cannot be used.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise InputError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    signature = inspect.signature(DATASETS[name])
    try:
        arguments = signature.bind(root, **options)
    except TypeError as error:
        known = ", ".join(p for p in signature.parameters if p != "root") or "none"
        raise InputError(f"data set {name}: {error}; its options: {known}") from None
    for option, value in options.items():
        default = signature.parameters[option].default if option in signature.parameters else None
        if type(default) in EXPECTED and type(value) is not type(default):
            raise InputError(f"data set {name}: {option} = {value!r}: give {EXPECTED[type(default)]}")
    return DATASETS[name](*arguments.args, **arguments.kwargs)
