"""Open other tools' pickles without running what they hold."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from s2ap_core.errors import InputError
from s2ap_core.files.arrays import unpacked_size
from s2ap_core.files.kinds import check_input
from s2ap_core.files.rehearsal import TooMuch, rehearsed


def _number_type(name: object, *_: object) -> np.dtype[Any]:
    """Return ``numpy.dtype`` for numbers alone: ``V2000000000`` would be a type of two gigabytes."""
    if not (isinstance(name, str) and re.fullmatch(r"[<>|=]?[biuf]\d", name)):
        raise pickle.UnpicklingError(f"a numpy type that is no number: {name!r:.40}")
    return np.dtype(name)


# The published schedulers leave a numpy float in the optimizer's lr, under the name that numpy then had for it.
_SCALAR = np.float64(0).__reduce__()[0]


ALLOWED: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_number_type, "numpy.dtype"),
    np.dtypes.Float64DType,
]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, whoever wrote it.

    Raises:
        InputError: if it is missing or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: truncated, or not a safetensors file; copy or make it again") from error


def unpickle(path: Path) -> object:
    """Read what ``torch.save`` wrote, tensors onto the CPU.

    Raises:
        InputError: if it is damaged, holds more than tensors and plain values, or asks for memory or time out of
            proportion to its size.
    """
    check_input(path)
    try:
        return rehearsed(lambda: _load(path), unpacked_size(path))
    except TooMuch as error:
        raise InputError(f"{path}: refused, {error}; save the state dict alone") from error
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        refused = re.search(r"(?:GLOBAL|<class|<built-in function|<function) '?([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise InputError(
                f"{path}: refused, the pickle asks for {refused[1]}, which is neither a tensor nor a plain "
                "value; save the state dict alone"
            ) from error
        raise InputError(
            f"{path}: truncated, or not a checkpoint that torch.load reads; copy or make it again"
        ) from error


def _load(path: Path) -> object:
    with safe_globals(ALLOWED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual pickle protocols: they load, or are refused
        return torch.load(path, map_location="cpu", weights_only=True)


REAL = frozenset(np.dtype(kind).name for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "bool"))
"""Names of the types of real numbers that numpy has."""


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, real, in memory, and of no more entries than its file has numbers for."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and (kind in REAL or kind.startswith(("bfloat16", "float8_")))
        and not tensor.is_nested
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
