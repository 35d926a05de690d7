"""What the groups of settings share: no unknown keys, exact radii."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, field_validator


class Settings(BaseModel):
    """A group of settings: frozen, every key known, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_computed_with_and_written(cls, value: Any) -> Any:
        for entry in _entries(value):
            if isinstance(entry, int) and abs(entry) >= 1 << 63:
                raise ValueError("beyond the whole numbers of 64 bits")
            if isinstance(entry, float | Fraction) and _LARGEST < abs(float(entry)) < float("inf"):
                raise ValueError("beyond the numbers of float32")
            if isinstance(entry, str | Path):
                try:
                    str(entry).encode()
                except UnicodeEncodeError:
                    raise ValueError("a name that is no UTF-8, which no config can hold; rename it") from None
        return value


_LARGEST = 3.4e38
"""Of a number that is not a count: about float32's largest."""


def _entries(value: Any) -> Iterator[Any]:
    """Go through a value and what it holds; groups of settings have checked theirs."""
    if isinstance(value, dict | list | tuple):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _entries(part)
    else:
        yield value


_LARGEST_EXPONENT = 308
"""Of a radius, as of a float: an exact fraction of 1e999999999 would take all memory."""


def _fraction(value: Any) -> Fraction:
    """Read an exact fraction: 8/255 is no float, and radii are kept as the field writes them."""
    exponent = re.search(r"e([+-]?\d+)", value.lower()) if isinstance(value, str) else None
    if isinstance(value, bool) or (exponent and abs(int(exponent[1])) > _LARGEST_EXPONENT):
        raise ValueError("not a number or a fraction such as 8/255")
    try:
        return Fraction(value)
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError("not a number or a fraction such as 8/255") from error


Options = dict[str, bool | int | float | str | list[bool | int | float | str]]
"""Options of a part of somebody else's, by name; held to the types that the part's own annotations say."""


AttackNorm = Literal["Linf", "L2", "L1"]
"""The norms of the threat models: how far an adversary's images may be from the given ones."""


NetworkNorm = Literal["batch", "group"]
"""The normalisations of the convolutional networks: BatchNorm, and GroupNorm in its place."""


Radius = Annotated[Fraction, BeforeValidator(_fraction), PlainSerializer(str)]
