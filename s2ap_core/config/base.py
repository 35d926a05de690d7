"""What the groups of settings share: no unknown keys, exact radii."""

import re
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer


class Settings(BaseModel):
    """A group of settings: frozen, every key known, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
