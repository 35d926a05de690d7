"""The data sets: one file each, one line each in :data:`DATASETS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from s2ap_core.config.parts import Registry, blamed, call
from s2ap_core.data import cifar10, cifar10c, digits, imagenet, svhn
from s2ap_core.data.base import Batch, Dataset, Split
from s2ap_core.data.memory import InMemory
from s2ap_core.data.own import adapt, is_path, load_path
from s2ap_core.errors import InputError

__all__ = ["DATASETS", "Batch", "Dataset", "InMemory", "Split", "load"]

# Name -> loader; a loader takes the folder and the options of its own data set.
DATASETS: Registry[Callable[..., Dataset]] = Registry("data set", "--dataset", {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "cifar10c": cifar10c.load,
    "svhn": svhn.load,
    "imagenet": imagenet.load,
})  # fmt: skip


# For the type of an option's default: what the option takes.
EXPECTED = {bool: "true or false", int: "a whole number"}


def load(name: str, root: Path | None = None, **options: Any) -> Dataset:
    """Load the data set ``name`` from the folder ``root``.

    Args:
        name: a key of :data:`DATASETS`, an .npz file, a folder of class folders, or the place of a factory, see
            :mod:`s2ap_core.config.parts` and :func:`s2ap_core.data.own.adapt`.
        root: folder with the published files; digits needs none.
        options: the data set's own, such as ``corruption="fog", severity=3`` of cifar10c.

    Raises:
        InputError: if there is no such data set or option, or if its files cannot be used.
    """
    if name not in DATASETS and isinstance(name, str) and is_path(name):
        made = call(f"data set {name}", load_path, name, offered={}, options=options)
        return cast(Dataset, made)
    if name not in DATASETS:
        factory = DATASETS.find(str(name))
        made = call(f"data set {name}", factory, offered={"root": root}, options=options)
        with blamed(f"data set {name}", None):
            return adapt(name, made)
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
