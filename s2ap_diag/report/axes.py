"""The plotting area of a chart, and axes that map values onto it with round ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class Tick:
    """A tick: where it stands along its axis in the picture's units, and what is written at it."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """The picture of a chart and the plotting area in it, in the picture's units (CSS pixels at 100 %)."""

    width: int = 360
    height: int = 216
    left: int = 52
    right: int = 350
    top: int = 30
    bottom: int = 182


FRAME = Frame()


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high`` that is laid from ``start`` to ``end``; a single value stands in the middle.

    Attributes:
        log: whether it is logarithmic; ``low`` and ``high`` are positive then.
        values: of its ticks, inside of [low, high].
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    values: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Give a value's place, to a tenth of the picture's unit."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        if low == high:
            return round((self.start + self.end) / 2, 1)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Tick]:
        """Its ticks, with their numbers."""
        return [Tick(self(value), short_number(value)) for value in self.values]

    @classmethod
    def across(cls, low: float, high: float, among: Iterable[float]) -> Self:
        """Lay whole numbers across the frame, such as epochs, with ticks at some of those that there are."""
        shown = set(among)
        values = tuple(float(v) for v in MaxNLocator(5, integer=True).tick_values(low, high) if v in shown)
        return cls(low, high, FRAME.left, FRAME.right, False, values)

    @classmethod
    def upright(cls, low: float, high: float, *, log: bool = False) -> Self:
        """Lay an axis along the frame's height that begins and ends with a round tick."""
        return cls._round(low, high, FRAME.bottom, FRAME.top, log, 4)

    @classmethod
    def lying(cls, low: float, high: float, *, log: bool = False) -> Self:
        """Lay an axis across the frame that begins and ends with a round tick, or at its single value."""
        if low == high and not log:
            return cls(low, high, FRAME.left, FRAME.right, False, (low,))
        return cls._round(low, high, FRAME.left, FRAME.right, log, 5)

    @classmethod
    def _round(cls, low: float, high: float, start: float, end: float, log: bool, most: int) -> Self:
        if log:  # from one power of ten to another, with few ticks
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            last = max(last, first + 1)
            exponents = range(first, last + 1, math.ceil((last - first) / most))
            return cls(10.0**first, 10.0**last, start, end, True, tuple(10.0**e for e in exponents))
        values = tuple(float(v) for v in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        return cls(values[0], values[-1], start, end, False, values)


def short_number(value: float) -> str:
    """Write a tick's number: 0.25, 10000, 1e5."""
    value = 0.0 if abs(value) < 1e-12 else value
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"
