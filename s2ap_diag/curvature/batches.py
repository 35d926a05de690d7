"""Batches as anyone has them: tuples or dicts of tensors, in a list, a DataLoader or a generator."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from s2ap_core.errors import InputError


def held(batches: Iterable[Any], stacklevel: int = 3) -> Sequence[Any]:
    """Give batches that can be passed over again and again, each time the same ones.

    A list or a tuple of batches is taken as it is. Anything else, such as a DataLoader, which may shuffle, or a
    generator, which ends, is made into a list with a warning that says so.

    Args:
        stacklevel: of the warning, whose place is the caller's caller by default.

    Raises:
        InputError: if a batch is a tensor, a number or a word by itself: one batch was given in place of several.
    """
    listed = batches if isinstance(batches, list | tuple) else list(batches)
    for batch in listed:
        if not isinstance(batch, list | tuple | Mapping):
            raise InputError(
                f"batches: one of them is a {type(batch).__name__}; give a list of tuples (x, y) or of dicts, also "
                "where there is one batch, and (x,) where there are no labels"
            )
    if listed is not batches:
        warnings.warn(
            f"batches: a {type(batches).__name__}, held as a list of {len(listed)} from here on, since each product "
            "passes over all of them",
            stacklevel=stacklevel,
        )
    return listed


def samples_in(batch: Any) -> int:
    """Count the samples in a batch: the length of the first tensor in it, however deep.

    Raises:
        InputError: if it holds no tensor.
    """
    count = _samples(batch)
    if count is None:
        raise InputError(
            "batches: one of them holds no tensor with a dimension of samples; give tuples (x, y) or dicts"
        )
    return count


def shares_of(batches: Sequence[Any]) -> list[float]:
    """Compute the share of all samples that each batch holds.

    Raises:
        InputError: if they hold no sample, or one of them no tensor.
    """
    counts = [samples_in(batch) for batch in batches]
    if not sum(counts):
        raise InputError("batches: there is no sample in them; give at least one")
    return [count / sum(counts) for count in counts]


def _samples(part: Any) -> int | None:
    if isinstance(part, Tensor):
        return len(part) if part.dim() else None
    if isinstance(part, Mapping):
        part = list(part.values())
    counts = map(_samples, part) if isinstance(part, list | tuple) else iter(())
    return next((count for count in counts if count is not None), None)
